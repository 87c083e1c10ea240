"""Rewards that end, damage or block the process of a command: one clear error, or a normal end."""

from __future__ import annotations

import os
import re
import time

import pytest
from PIL import Image
from support.command_line import run_tdmr1
from support.runs import small_config

from tdmr1_cli.run_command import _execute as execute
from tdmr1_cli.signals import Stopped
from tdmr1_core.runs import run as run_module
from tdmr1_core.runs.run import Run
from tdmr1_rewards.scoring import supervisor

pytestmark = pytest.mark.integration

HOSTILE = """
import atexit, builtins, json, os, resource, sys, threading, time
from tdmr1_rewards import RewardResult

def scores(batch):
    return RewardResult([0.5 + 0.01 * i for i in range(len(batch))])

def exits(batch):
    os._exit(0)

def runs_another_program(batch):
    os.execvp("true", ["true"])

def raises_at_exit(batch):
    atexit.register(lambda: os._exit(0))
    raise ValueError("mistake")

def closes_files(batch):
    os.closerange(3, 200)
    return scores(batch)

def forks(batch):
    os.fork()
    return scores(batch)

def exits_at_exit(batch):
    atexit.register(lambda: os._exit(77))
    return scores(batch)

def leaves_a_thread(batch):
    threading.Thread(target=time.sleep, args=(600,), name="sleeper", daemon=False).start()
    return scores(batch)

def changes_everything(batch):
    os.close(1)
    os.close(2)
    os.umask(0o777)
    os.environ.clear()
    resource.setrlimit(resource.RLIMIT_NOFILE, (12, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    sys.setrecursionlimit(200)
    sys.stdout = None
    json.dumps = lambda *_, **__: "haha"
    result = scores(batch)
    del builtins.open
    return result
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hostile.py").write_text(HOSTILE)
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    return tmp_path


def try_reward(folder, name, code, **options):
    """The output of `rewards try`, which calls the reward in the process of the command."""
    arguments = ["rewards", "try", f"hostile.py:{name}", "image.png", "--prompt", "x", "--json"]
    return run_tdmr1(*arguments, cwd=folder, code=code, **options)


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("exits", r"os\._exit\(0\) \(hostile\.py:9, in exits\) \[reward-failed\]"),
        ("runs_another_program", r"os\.execve?\(.*true.* \(hostile\.py:12, in runs_another_program\)"),
        ("raises_at_exit", r"ValueError: mistake \(hostile\.py:16"),
        ("closes_files", r"reward 'closes_files' .* closed files of this process.* \[reward-failed\]"),
    ],
)
def test_a_reward_cannot_end_the_command_with_exit_code_0(folder, name, quoted):
    printed = try_reward(folder, name, code=2).stderr
    assert re.search(rf"^error: .*{quoted}", printed, re.MULTILINE), printed
    assert len(re.findall(r"^error: ", printed, re.MULTILINE)) == 1


@pytest.mark.parametrize("name", ["forks", "exits_at_exit"])
def test_a_command_ignores_forks_and_exit_handlers_of_a_reward(folder, name):
    done = try_reward(folder, name, code=0)
    assert done.stdout.count('"score": 0.5') == 1
    assert "warning: " not in done.stderr


def test_what_a_reward_changes_in_the_process_is_restored(folder):
    done = try_reward(folder, "changes_everything", code=0)
    assert '"score": 0.5' in done.stdout
    (warned,) = re.findall("^warning: .*", done.stderr, re.MULTILINE)
    for changed in ("builtins.open and json.dumps", "environment variables (", "more)"):
        assert changed in warned
    last = "the umask and the recursion limit and the limit RLIMIT_NOFILE and sys.stdout"
    assert f"{last} and file descriptor 1 and file descriptor 2, which is restored" in warned


def test_a_thread_of_a_reward_does_not_keep_the_program_from_ending(folder):
    done = try_reward(folder, "leaves_a_thread", code=0, fresh=True)
    assert "threads that are not daemons: sleeper" in done.stderr


HANGING = """
import os, signal, time
from tdmr1_rewards import RewardResult

def hangs(batch):
    if batch.context.iteration == 1:
        open({mark!r}, "w").close()
        for _ in range({signals}):
            os.kill({pid}, signal.SIGTERM)
            time.sleep({pause})
        time.sleep(600)
    return RewardResult([0.01 * i for i in batch.image_ids])
"""


@pytest.mark.parametrize(
    ("signals", "isolated", "stopped"),
    [(1, False, "after iteration 1 of 3"), (1, True, "after iteration 1 of 3"), (2, False, "at once")],
)
def test_a_signal_ends_a_run_although_a_reward_without_limit_hangs(tmp_path, monkeypatch, signals, isolated, stopped):
    monkeypatch.setattr(run_module, "STOPPING_LIMIT", 1.0 if signals == 1 else 30.0)
    monkeypatch.setattr(supervisor, "GRACE", 0.2)
    source, mark = tmp_path / "hanging.py", tmp_path / "signalled"
    source.write_text(HANGING.format(pause=2 if signals > 1 else 0, signals=signals, pid=os.getpid(), mark=str(mark)))
    reward = {"name": "hangs", "source": f"{source}:hangs", "timeout": "none", "isolated": isolated}
    config = small_config("saving.checkpoint_every=1", "guard.rewards=[]", rewards=[reward])
    with pytest.raises(Stopped, match=f"stopped {stopped}; saved: .*step-000001"):
        execute(Run.create(config, tmp_path / "run"), quiet=True)
    assert time.time() - mark.stat().st_mtime < 60
