"""Runs of several processes from the command line: one run folder, each message once, and all processes end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command_line import environment, small, start_tdmr1
from support.paths import ROOT
from support.waiting import is_running

pytestmark = pytest.mark.integration

FEW = (*small("evaluation.images=1", "saving.samples_every=0"), "--seed", 3)
REWARD = '''
import os
from tdmr1_rewards import RewardBatch, RewardResult

def breaking(batch: RewardBatch) -> RewardResult:
    """Redness; raises an error for the second group in the second iteration."""
    if os.environ.get("BREAK") and 1 in batch.group_ids and batch.context.iteration == 1:
        raise ValueError("the lamp is out")
    return RewardResult(scores=[float(image.resize((1, 1)).getpixel((0, 0))[0]) for image in batch.images])
'''


def steps(folder):
    """The iterations in metrics.jsonl."""
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def until_first_iteration(process):
    """The lines of stderr up to the report of the first iteration."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("iteration "):
            break
    return lines


def test_a_reward_that_fails_in_one_process_stops_all_and_the_run_is_saved(packaged_model, tdmr1, tmp_path):
    (tmp_path / "reward.py").write_text(REWARD)
    folder = tmp_path / "run"
    arguments = [*FEW, "--reward", f"{tmp_path}/reward.py:breaking", "--iterations", 3, "--output", folder]
    arguments += ["--set", "generator.huber_c=0.1"]
    done = tdmr1("train", *arguments, "--processes", 2, code=2, BREAK="1")
    assert done.stderr.count("error: ") == 1
    assert done.stderr.count("hint: ") == 1
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("note: generator.huber_c ")]
    assert note.endswith(" [setting-ineffective]")
    assert "the lamp is out" in done.stderr
    assert "step-000001" in done.stderr
    assert done.stderr.count("iteration 1/3") == 1
    assert steps(folder) == [1]

    done = tdmr1("train", "--resume", folder)
    assert "resuming after iteration 1" in done.stderr
    assert steps(folder) == [1, 2, 3]


def test_ctrl_c_stops_all_processes_and_the_run_is_saved(packaged_model, tmp_path):
    folder = tmp_path / "run"
    arguments = [*FEW, "--iterations", 50, "--processes", 2, "--output", folder]
    process = start_tdmr1("train", *arguments, stderr=subprocess.PIPE)
    lines = until_first_iteration(process)
    process.send_signal(signal.SIGINT)
    printed = "".join(lines) + process.communicate(timeout=300)[1]
    assert process.returncode == 130, printed
    assert printed.count("stopping after this iteration") == 1
    assert printed.count(f"hint: tdmr1 train --resume {folder}") == 1
    checkpoints = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert checkpoints == [f"step-{steps(folder)[-1]:06d}"]


def children_of(process):
    """The process ids of the two processes of the run, in the order of their ranks."""
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    found = [int(pid) for pid in listed.stdout.split()]
    ranks = [pid for pid in found if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 2
    return sorted(ranks)


def test_a_second_stop_request_ends_a_stopped_process_and_names_what_is_saved(packaged_model, tmp_path):
    folder = tmp_path / "run"
    arguments = [*FEW, "--set", "saving.checkpoint_every=1", "--iterations", 50, "--processes", 2, "--output", folder]
    process = start_tdmr1("train", *arguments, stderr=subprocess.PIPE)
    lines = until_first_iteration(process)
    children = children_of(process)
    os.kill(children[0], signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    printed = "".join(lines) + process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 10
    assert process.returncode == 130, printed
    assert printed.count("stopped at once") == 1
    assert "resource_tracker" not in printed
    assert not any(map(is_running, children))


def test_a_killed_launcher_leaves_no_process(packaged_model, tmp_path):
    arguments = [*FEW, "--iterations", 50, "--processes", 2, "--output", tmp_path / "run"]
    process = start_tdmr1("train", *arguments, stderr=subprocess.PIPE)
    until_first_iteration(process)
    children = children_of(process)
    os.kill(children[1], signal.SIGSTOP)
    process.kill()
    until = time.monotonic() + 5
    while any(map(is_running, children)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_running, children))
    assert "resource_tracker" not in process.communicate(timeout=60)[1]


@pytest.mark.long
def test_if_a_process_is_killed_the_others_end(packaged_model, tmp_path):
    arguments = [*FEW, "--iterations", 50, "--processes", 2, "--output", tmp_path / "run"]
    process = start_tdmr1("train", *arguments, fresh=True, stderr=subprocess.PIPE)
    lines = until_first_iteration(process)
    listed = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    children = [int(pid) for pid in listed.stdout.split()]
    assert len(children) == 2
    subprocess.run(["kill", "-KILL", str(children[1])], check=True)
    printed = "".join(lines) + process.communicate(timeout=300)[1]
    assert process.returncode == 2, printed
    assert printed.count("error: ") == 1
    assert re.search(r"^error: .*\b2 of 2\b.*\bSIGKILL\b.* \[process-failed\]$", printed, re.MULTILINE), printed


CONFIGS = ROOT / "examples" / "configs"
ACCELERATE = ("accelerate.commands.launch", "--config_file", str(CONFIGS / "accelerate_gpus.yaml"))
COUNTING = """
import os
from pathlib import Path
from tdmr1_rewards import RewardBatch, RewardResult

def counting(batch: RewardBatch) -> RewardResult:
    Path(os.environ["SEEN"], str(os.getpid())).touch()
    return RewardResult(scores=[float(image.resize((1, 1)).getpixel((0, 0))[0]) for image in batch.images])
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "launcher",
    [("torch.distributed.run", "--nproc_per_node", "2"), (*ACCELERATE, "--num_processes", "2")],
    ids=["torchrun", "accelerate launch"],
)
def test_other_launchers_start_a_run_of_two_processes(packaged_model, tmp_path, launcher):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    seen.mkdir()
    (tmp_path / "reward.py").write_text(COUNTING)
    arguments = ["train", *FEW, "--reward", f"{tmp_path}/reward.py:counting", "--iterations", 1, "--output", folder]
    command = [sys.executable, "-m", *launcher, "-m", "tdmr1_cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment(SEEN=str(seen)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("iteration 1/1") == 1
    assert steps(folder) == [1]
    assert len(list(seen.iterdir())) == 2


def test_accelerate_reads_the_example_config():
    from accelerate.commands.config.config_args import load_config_from_file

    path = CONFIGS / "accelerate_gpus.yaml"
    config = load_config_from_file(str(path))
    assert (config.distributed_type, config.num_processes) == ("MULTI_GPU", 4)
    assert "Not run on GPUs" in path.read_text()


def test_groups_that_cannot_be_divided_are_refused_before_anything_is_loaded(tdmr1, tmp_path):
    done = tdmr1("train", *FEW, "--processes", 3, "--output", tmp_path / "run", code=2)
    assert "[processes-count]" in done.stderr
    assert "batch.groups=3" in done.stderr
    assert not (tmp_path / "run").exists()
