"""A reward in another process, in this environment and in others."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest
from support.environments import bare_environment, image_environment
from support.errors import raises
from support.paths import TESTS
from support.reward_batches import FOO, active, faulty, make_batch
from support.waiting import is_running, wait_until

from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.calling import process as process_module
from tdmr1_rewards.calling.process import ProcessHost
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.calling.result_checks import CallFailed
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import RegisteredReward, RewardRegistry
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.sources.source import create_reward, find_reward, reference_for

pytestmark = pytest.mark.unit

OWNER = "reward 'x' (from foo-dist 1.2)"


def host(reference, image_format="array", python=None):
    built = ProcessHost(reference, OWNER, image_format, python)
    built.start()
    return built


def build_error(code, *arguments, **keywords):
    with raises(code) as caught:
        host(*arguments, **keywords)
    assert caught.value.message.startswith(OWNER)
    assert "\n" not in caught.value.message
    return caught.value


def call_failure(running, *prompts):
    with pytest.raises(CallFailed) as caught:
        running.call(make_batch(*prompts))
    assert caught.value.code == "reward-failed"
    return caught.value


def test_output_and_input_of_a_reward_do_not_disturb_the_protocol(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    running = host(faulty())
    assert list(running.call(make_batch("print", "b")).scores) == [0.0, 1.0]
    assert not (tmp_path / "notes").exists()
    running.close()
    assert (tmp_path / "notes").read_text() == "closed"
    assert not is_running(running.pid)


def test_images_have_the_format_of_the_spec(tmp_path):
    (tmp_path / "kinds.py").write_text(
        "from tdmr1_rewards import RewardResult\n"
        "def build():\n"
        "    return lambda batch: RewardResult([1.0] * len(batch),"
        " [{'kind': type(i).__name__, 'size': i.size} for i in batch.images])\n"
    )
    running = host(Reference(factory={"file": str(tmp_path / "kinds.py"), "attr": "build"}), "pil")
    assert running.call(make_batch("a")).details == [{"kind": "Image", "size": [5, 4]}]
    running.close()


@pytest.mark.parametrize("order", ["hang", "wait"])
def test_a_worker_ends_with_its_parent(order, tmp_path):
    """The parent is killed during a call and between calls."""
    script = (
        "import sys, time; from support.reward_batches import *\n"
        "from tdmr1_rewards.calling.process import ProcessHost\n"
        "host = ProcessHost(faulty(), 'x', 'array'); host.start()\n"
        "print(host.pid, flush=True)\n"
        f"host.call(make_batch({order!r})); print('done', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
        if order == "wait":
            assert parent.stdout.readline() == "done\n"
        else:
            time.sleep(0.3)
        assert is_running(pid)
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not is_running(pid))


def test_a_worker_does_not_receive_ctrl_c_of_the_terminal():
    running = host(faulty())
    assert os.getpgid(running.pid) == running.pid != os.getpgid(0)
    running.close()


def test_child_processes_of_a_reward_are_killed_with_it(tmp_path):
    (tmp_path / "mother.py").write_text(
        "import subprocess, sys, time\n"
        "def build():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "    return lambda batch: time.sleep(60)\n"
    )
    reward = Reference(factory={"file": str(tmp_path / "mother.py"), "attr": "build"})
    with RewardRunner([active(reward, timeout=1.0)], "weighted_sum", 1) as runner:
        with raises("reward-failed", seconds=1.0):
            runner.score(make_batch("a"))
        pid = int((tmp_path / "pid").read_text())
        wait_until(lambda: not is_running(pid))


def test_another_protocol_version_is_rejected(monkeypatch):
    monkeypatch.setattr(process_module, "PROTOCOL", 99)
    message = build_error("reward-build", faulty()).message
    assert "protocol version 1" in message
    assert "version 99" in message


def test_a_line_that_is_not_an_answer_is_reported(monkeypatch, tmp_path):
    (tmp_path / "worker.py").write_text("print('hello')\ninput()\n")
    monkeypatch.setattr(process_module, "WORKER", tmp_path / "worker.py")
    assert "b'hello" in build_error("reward-build", faulty()).message


def test_an_interpreter_that_cannot_be_started_is_reported(tmp_path):
    error = build_error("reward-environment", faulty(), python=tmp_path / "python")
    assert error.values["python"] == str(tmp_path / "python")
    assert "/path/to/venv/bin/python" in error.hint
    (tmp_path / "python").write_text("#!/bin/sh\nexit 4\n")
    (tmp_path / "python").chmod(0o755)
    assert build_error("reward-build", faulty(), python=tmp_path / "python").values["exit_code"] == 4


@pytest.mark.parametrize(
    ("reference", "quoted"),
    [
        (faulty("broken"), "KeyError: 'weights'"),
        (faulty("nothing"), "support.faulty_rewards:nothing"),
        (Reference(factory="no_such_module:thing"), "ModuleNotFoundError: No module named 'no_such_module'"),
        (Reference(factory={"file": "/nowhere/a.py", "attr": "b"}), "/nowhere/a.py"),
        (faulty(options={"a": 1}), "'a'"),
    ],
)
def test_the_host_raises_if_the_reward_cannot_be_built(reference, quoted):
    assert quoted in build_error("reward-build", reference).message


def test_an_adapter_converts_a_foreign_function(tmp_path):
    (tmp_path / "foreign.py").write_text(
        "def brightness(images, scale):\n    return [scale * i.mean() for i in images]\n"
    )
    (tmp_path / "adapting.py").write_text(
        "from tdmr1_rewards import RewardResult\n"
        "def adapt(function, options, owner):\n"
        "    return lambda batch: RewardResult(function(batch.images, **options))\n"
    )
    reference = Reference(
        factory={"file": str(tmp_path / "foreign.py"), "attr": "brightness"},
        options={"scale": 10},
        adapter="adapting:adapt",
        paths=[str(tmp_path)],
    )
    running = host(reference)
    assert list(running.call(make_batch("a", "b")).scores) == [0.0, 10.0]
    running.close()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return bare_environment(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """An environment with only numpy and Pillow, linked from this one: no pluggy, pydantic or torch."""
    return image_environment(tmp_path_factory.mktemp("other"))


def test_an_environment_without_pillow_is_reported(bare):
    error = build_error("reward-build", faulty(), python=bare)
    assert str(bare) in error.message
    assert error.hint == f"`{bare} -m pip install pillow`"


def test_another_environment_needs_neither_torch_nor_tdmr1(other, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (folder := other.parents[1] / "own").mkdir()
    (folder / "elsewhere.py").write_text(
        "import sys, importlib.util\n"
        "from tdmr1_rewards import RewardResult, hookimpl\n"
        "absent = [n for n in ('torch', 'pydantic', 'support', 'pytest') if importlib.util.find_spec(n)]\n"
        "@hookimpl\n"
        "def tdmr1_register_rewards(register): pass\n"
        "def build():\n"
        "    details = {'prefix': sys.prefix, 'found': absent}\n"
        "    return lambda batch: RewardResult([float(i.mean()) for i in batch.images], [details] * len(batch))\n"
    )
    entry = active(Reference(factory="elsewhere:build", paths=[str(folder)]), python=other)
    with RewardRunner([entry], "weighted_sum", 1) as runner:
        scored = runner.score(make_batch("a", "ü", "c"))
    assert scored.total == [0.0, 1.0, 2.0]
    assert scored.details[0]["x"] == {"prefix": str(other.parents[1]), "found": []}


def test_a_missing_module_is_named_with_the_environment(other, tmp_path):
    (tmp_path / "needy.py").write_text("import pydantic\n")
    error = build_error("reward-build", Reference(factory="needy:build", paths=[str(tmp_path)]), python=other)
    assert "No module named 'pydantic'" in error.message
    assert error.hint == f"install pydantic in the environment of {other}"


def registered(**spec):
    fields = {"name": "x", "summary": "", "factory": "a:b", "default_prompts": "count", **spec}
    return RegisteredReward(RewardSpec(**fields), FOO)


OPTIONS = {"options": "tdmr1_rewards.builtin.object_count:ObjectCountOptions"}


def test_options_are_validated_before_a_process_is_started():
    plain = {"factory": "support.faulty_rewards:Faulty"}
    for spec, python in ((OPTIONS, None), (OPTIONS, Path("/other/python")), (plain, None)):
        with raises("reward-options", options=["colour"]):
            reference_for(registered(**spec), {"colour": 1}, python)


def test_options_are_validated_in_the_other_environment_if_the_model_is_only_there():
    spec = {"options": "only_elsewhere:Options"}
    assert reference_for(registered(**spec), {"a": 1}, Path("/other/python")).options == {"a": 1}
    with raises("reward-import", source="only_elsewhere:Options"):
        reference_for(registered(**spec), {"a": 1})


def test_a_reference_names_only_the_module_of_the_reward(tmp_path, monkeypatch):
    elsewhere = Path("/other/python")
    assert reference_for(registered(factory="yaml.nodes:Node"), {}, elsewhere).modules == {
        "yaml": str(Path(sysconfig.get_path("purelib")) / "yaml")
    }
    assert reference_for(registered(factory="yaml.nodes:Node"), {}, elsewhere).paths == ()
    (tmp_path / "own_reward.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert reference_for(registered(factory="own_reward:build"), {}, elsewhere).paths == [str(tmp_path)]
    ours = reference_for(registered(factory="tdmr1_rewards.builtin.object_count:ObjectCount"), {}, elsewhere)
    assert (ours.paths, ours.modules) == ((), {})
    assert reference_for(registered(factory="no_such:thing"), {}, elsewhere).paths == ()
    assert set(map(os.path.abspath, sys.path)) == set(reference_for(registered(), {}).paths)


def test_the_worker_follows_the_documented_protocol_and_exits(tmp_path):
    """Requests and answers as documented in worker.py."""
    worker = subprocess.Popen(
        [sys.executable, str(process_module.WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def send(**request):
        worker.stdin.write(json.dumps(request).encode() + b"\n")
        worker.stdin.flush()
        return json.loads(worker.stdout.readline())

    document = faulty().document()
    built = send(do="build", protocol=1, owner="it", image_format="array", reference=document)
    assert built == {"ok": {"python": "{}.{}.{}".format(*sys.version_info[:3])}}
    assert send(do="setup", device="cpu") == {"ok": {"note": None}}
    assert send(do="score", batch={})["failed"].startswith("failed: invalid message: context is missing")
    assert send(do="close") == {"ok": {}}
    worker.stdin.close()
    assert worker.wait(30) == 0
    worker.stdout.close()


def test_a_killed_worker_is_reported_with_its_signal():
    running = host(faulty())
    os.kill(running.pid, signal.SIGKILL)
    failure = call_failure(running, "a")
    assert failure.values == {"exit_code": -signal.SIGKILL}
    assert "SIGKILL" in failure.reason
    assert running.gone
    running.start()
    assert np.array_equal(running.call(make_batch("a", "b")).scores, [0.0, 1.0])
    running.close()


FAULTS = """
import sys
from tdmr1_rewards import RewardResult, Tdmr1Error

class Reward:
    def __init__(self):
        self.step = {step!r}
        self.fail("build")

    def fail(self, step):
        if self.step == step:
            raise KeyError(step)

    def setup(self, device):
        self.fail("setup")

    async def __call__(self, batch):
        self.fail("call")
        if batch.prompts[0] == "hint":
            raise Tdmr1Error("no lamp", "light it", code="reward-metadata", values={{"lamp": 1}})
        return RewardResult([0.0] * len(batch))

    def state_dict(self):
        self.fail("state")
        return {{}}

    def load_state_dict(self, state):
        self.fail("load")

    def close(self):
        self.fail("close")
"""


@pytest.mark.parametrize("kind", ["thread", "process"])
@pytest.mark.parametrize("step", ["build", "setup", "call", "state", "load", "close"])
def test_an_exception_in_any_step_has_the_file_and_line_of_the_reward(tmp_path, monkeypatch, kind, step):
    monkeypatch.chdir(tmp_path)
    text = FAULTS.format(step=step)
    Path("faults.py").write_text(text)
    line = text.split("\n").index("            raise KeyError(step)") + 1
    found = find_reward(RewardRegistry([]), "faults.py:Reward")

    def every_step():
        reward = reference_for(found, {}) if kind == "process" else create_reward(found, {})
        with RewardRunner([active(reward)], "weighted_sum", 1) as runner:
            runner.score(make_batch("a"))
            runner.load_states(runner.states())

    with raises("reward-build" if step == "build" else "reward-failed", file="faults.py", line=line) as caught:
        every_step()
    assert f"KeyError: '{step}' (faults.py:{line}, in fail)" in caught.value.message
    assert caught.value.hint.startswith(f"look at faults.py, line {line}; TDMR1_DEBUG=1 shows the whole traceback")
    assert ("on_failure" in caught.value.hint) is (step == "call")


def test_an_error_that_a_reward_raises_on_purpose_keeps_code_and_values_and_has_no_place(tmp_path):
    (tmp_path / "faults.py").write_text(FAULTS.format(step=""))
    running = host(Reference(factory={"file": str(tmp_path / "faults.py"), "attr": "Reward"}))
    with pytest.raises(CallFailed) as caught:
        running.call(make_batch("hint"))
    running.close()
    failure = caught.value
    assert (failure.reason, failure.hint) == ("failed: no lamp", "light it")
    assert (failure.code, failure.values) == ("reward-metadata", {"lamp": 1})
    assert isinstance(failure.__cause__, Tdmr1Error)
    assert "Traceback" in str(failure.__cause__.__cause__)
