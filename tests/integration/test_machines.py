"""Runs on several machines: two agents of torchrun on this one. Both end if one is killed, in under a minute."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from support.command_line import environment, small
from support.warm_processes import warm_processes  # noqa: F401

from tdmr1_cli.multiprocess import launch
from tdmr1_cli.signals import ExitWithCode
from tdmr1_core.distributed import join_processes

pytestmark = pytest.mark.integration

TIMEOUT = 240.0


class Machine:
    """An agent of torchrun with its processes, which are a group of their own. Their output is in `logs`."""

    def __init__(self, rank: int, processes: int, port: int, logs: Path, *arguments: object) -> None:
        self.logs = logs / f"machine-{rank}"
        place = ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", str(processes)]
        place += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        kept = ["--log-dir", str(self.logs), "--redirects", "3"]
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *place,
            *kept,
            "-m",
            "tdmr1_cli",
            *map(str, arguments),
        ]
        self.agent = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def kill(self) -> None:
        """Kill the agent, then its processes, each of which has a session of its own."""
        listed = subprocess.run(["pgrep", "-P", str(self.agent.pid)], capture_output=True, text=True, check=False)
        for process in (self.agent.pid, *map(int, listed.stdout.split())):
            os.kill(process, signal.SIGKILL)

    def printed(self) -> list[str]:
        """What each process has printed on stderr, in the order of their local ranks."""
        return [path.read_text() for path in sorted(self.logs.rglob("stderr.log"), key=lambda path: path.parent.name)]


@pytest.fixture
def machines(tmp_path):
    """Starts machines with the numbers of their processes. All are ended after the test."""
    started: list[Machine] = []

    def start(counts: tuple[int, int], *arguments: object) -> list[Machine]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started.extend(Machine(rank, count, port, tmp_path, *arguments) for rank, count in enumerate(counts))
        return started

    yield start
    for each in started:
        if each.agent.poll() is None:
            each.kill()
            each.agent.wait()


def options(folder: Path, iterations: int, *settings: str) -> list[object]:
    """A run of the embedded model."""
    small_run = small("evaluation.images=4", "saving.samples_every=0", *settings)
    return ["train", *small_run, "--seed", 3, "--iterations", iterations, "--output", folder]


def wait_for(path: Path) -> None:
    """Wait until a file exists and is not empty."""
    until = time.monotonic() + TIMEOUT
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, f"{path} is not written"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("killed", "sharded"), [(1, "memory.shard=true"), pytest.param(0, "memory.shard=false", marks=pytest.mark.long)]
)
def test_if_a_machine_is_killed_the_other_ends_with_a_sentence(machines, tmp_path, killed, sharded):
    folder = tmp_path / "run"
    both = machines((1, 1), *options(folder, 1000, "saving.checkpoint_every=1", sharded))
    wait_for(folder / "checkpoints" / "latest")
    both[killed].kill()
    began = time.monotonic()
    other = both[1 - killed]
    assert other.agent.wait(60) != 0
    assert time.monotonic() - began < 60
    (printed,) = other.printed()
    assert "Traceback" not in printed
    assert printed.count("error: ") == 1
    assert (
        "error: a process of this run on another machine has ended, or the connection to it broke [process" in printed
    )
    assert f"tdmr1 train --resume {folder}" in printed


@pytest.mark.long
def test_machines_may_have_different_numbers_of_processes(machines, tmp_path):
    folder = tmp_path / "run"
    both = machines((2, 1), *options(folder, 1, "batch.groups=3", "memory.shard=true"))
    assert [each.agent.wait(TIMEOUT) for each in both] == [0, 0], [each.printed() for each in both]
    assert [len(each.printed()) for each in both] == [2, 1]
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1]


def join_with_gpu(rank: int) -> None:
    """Join as a process with or without a GPU. Nothing is computed. The second process is late."""
    import torch

    if os.environ["RANK"] == "1":
        read = torch.distributed.TCPStore.get
        torch.distributed.TCPStore.get = lambda store, key: time.sleep(0.3) or read(store, key)
    torch.cuda.is_available = lambda: os.environ["RANK"] == str(rank)
    torch.cuda.device_count = lambda: 2
    join_processes("auto")


def test_a_gpu_in_only_some_processes_is_refused(capfd):
    with pytest.raises(ExitWithCode) as caught:
        launch(2, partial(join_with_gpu, 0))
    assert caught.value.code == 2
    printed = capfd.readouterr().err
    assert printed.count("error: ") == 1
    assert (
        "error: 1 of 2 processes have no GPU, such as process 2, but the others have one [device-unavailable]"
        in printed
    )
