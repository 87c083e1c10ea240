"""The death of a reward's process is reported at once, and its children end with it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support.reward_batches import make_batch
from support.waiting import is_running, wait_until

from tdmr1_rewards.calling.process import ProcessHost
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.calling.result_checks import CallFailed

pytestmark = pytest.mark.unit

MORTAL = """
import ctypes, os, signal, time
from tdmr1_rewards import RewardResult


def child():
    # It holds every pipe of its parent, as a process that compiled code forks.
    if ctypes.CDLL(None).fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with open("pid.new", "w") as file:
            file.write(str(os.getpid()))
        os.rename("pid.new", "pid")
        time.sleep(600)
    while not os.path.exists("pid"):
        time.sleep(0.01)


class Mortal:
    def __init__(self, fault, step):
        self.fault, self.step = fault, step

    def reach(self, step):
        if step != self.step:
            return
        child()
        if self.fault == "exit":
            os._exit(3)
        if self.fault != "none":
            os.kill(os.getpid(), getattr(signal, self.fault))

    def setup(self, device):
        self.reach("setup")

    def __call__(self, batch):
        self.reach("call")
        return RewardResult([1.0] * len(batch))

    def state_dict(self):
        self.reach("state")
        return {}

    def load_state_dict(self, state):
        pass

    def close(self):
        self.reach("close")


class Forking:
    calls = 0

    def __call__(self, batch):
        self.calls += 1
        return RewardResult([2.0 * self.calls + (os.fork() == 0)] * len(batch))


class Closing:
    def __call__(self, batch):
        os.closerange(3, 200)
        return RewardResult([1.0] * len(batch))


def adapt(kind, options, owner):
    return kind(**options)
"""


def start(folder, kind="Mortal", **options):
    (folder / "mortal.py").write_text(MORTAL)
    factory = {"file": str(folder / "mortal.py"), "attr": kind}
    reference = Reference(factory=factory, options=options, adapter="mortal:adapt", paths=[str(folder)])
    host = ProcessHost(reference, "reward 'x'", "array")
    host.start()
    return host


def check_ends(pid):
    wait_until(lambda: not is_running(pid), 30)


STEPS = {
    "setup": lambda host: host.setup("cpu"),
    "call": lambda host: host.call(make_batch("a")),
    "state": lambda host: host.state(),
    "close": lambda host: host.close(),
}


@pytest.mark.parametrize(
    ("fault", "step", "quoted", "hint"),
    [
        ("SIGKILL", "call", "was killed by SIGKILL", "memory ran out"),
        ("SIGSEGV", "setup", "was killed by SIGSEGV", "compiled code"),
        ("exit", "state", "exited with code 3", ""),
        ("SIGTERM", "close", "was killed by SIGTERM", ""),
    ],
)
def test_a_death_is_reported_at_once_although_a_child_holds_the_pipes(tmp_path, monkeypatch, fault, step, quoted, hint):
    monkeypatch.chdir(tmp_path)
    host = start(tmp_path, fault=fault, step=step)
    began = time.monotonic()
    with pytest.raises(CallFailed) as caught:
        STEPS[step](host)
    assert time.monotonic() - began < 20  # the child keeps the pipes for 600 s
    assert quoted in caught.value.reason
    assert hint in (caught.value.hint or "")
    assert host.gone
    check_ends(int(Path("pid").read_text()))


def test_the_children_of_a_reward_end_when_it_is_closed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    host = start(tmp_path, fault="none", step="call")
    assert host.call(make_batch("a")).scores == [1.0]
    child = int(Path("pid").read_text())
    assert is_running(child)
    host.close()
    check_ends(child)


def test_the_children_of_a_reward_end_when_the_run_is_killed(tmp_path):
    run = os.fork()
    if run == 0:
        os.chdir(tmp_path)
        start(tmp_path, fault="none", step="call").call(make_batch("a"))
        Path("called").touch()
        time.sleep(600)
    deadline = time.monotonic() + 30
    while not (tmp_path / "called").exists():
        assert time.monotonic() < deadline, "the reward was not called"
        time.sleep(0.02)
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    check_ends(int((tmp_path / "pid").read_text()))


def test_only_the_process_of_the_reward_answers_not_a_fork_of_it(tmp_path):
    host = start(tmp_path, "Forking")
    assert [host.call(make_batch("a")).scores for _ in range(3)] == [[2.0], [4.0], [6.0]]
    host.close()


def test_a_reward_that_closes_its_pipes_is_reported(tmp_path):
    host = start(tmp_path, "Closing")
    with pytest.raises(CallFailed, match="the pipe for answers is closed"):
        host.call(make_batch("a"))
    assert host.gone
