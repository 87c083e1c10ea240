"""Several processes of which one is stopped, hangs, saves or loses its launcher: all of them end, in time."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import pytest
from support.warm_processes import warm_processes  # noqa: F401

from tdmr1_cli import multiprocess
from tdmr1_cli.exits import end
from tdmr1_cli.multiprocess import launch
from tdmr1_cli.signals import ExitWithCode
from tdmr1_core import heartbeat
from tdmr1_core.distributed import join_processes

pytestmark = pytest.mark.integration

LIMIT = 0.05
"""Minutes."""


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(multiprocess, "GRACE", 1.0)


def hang(how: str, rank: int) -> None:
    """One process hangs while the other waits for it."""
    processes = join_processes("cpu", LIMIT)
    if processes.rank == rank:
        with heartbeat.stage("rollout", limited=how != "slow"):
            if how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(LIMIT * 60 * 1.5 if how == "slow" else 600)
    processes.gather(None)
    processes.leave()


@pytest.mark.parametrize(("how", "rank"), [("stopped", 0), ("stopped", 1), ("hangs", 1)])
def test_a_process_without_progress_is_named_and_all_processes_end(how, rank, capfd):
    with pytest.raises(ExitWithCode) as caught:
        launch(2, partial(hang, how, rank))
    assert caught.value.code == 2
    printed = capfd.readouterr().err
    assert printed.count("error: ") == 1
    stage = "rollout" if how == "hangs" else "(loading|rollout)"  # a stopped process may not have reported its stage
    named = rf"process {rank + 1} \(last known stage: {stage}\) of 2 processes for 0\.05 minutes \[process-failed\]"
    assert re.search(named, printed), printed
    assert not active_children()


def test_a_long_stage_with_its_own_time_limit_is_no_fault(capfd):
    launch(2, partial(hang, "slow", 1))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_two_stop_requests_end_a_stopped_process(rank, tmp_path, capfd):
    def stop_twice() -> None:
        while not (tmp_path / "stops").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2)
        requested.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    requested: list[float] = []
    threading.Thread(target=stop_twice).start()
    with pytest.raises((KeyboardInterrupt, ExitWithCode)):
        launch(2, partial(stop_itself, rank, tmp_path / "stops"))
    assert time.monotonic() - requested[0] < 10
    assert not active_children()
    assert capfd.readouterr().err in ("", "stopped\n")


def stop_itself(rank: int, mark: Path) -> None:
    """One process stops itself, and the other waits for it and ignores a first request to stop, as a run does."""
    processes = join_processes("cpu")
    if processes.rank == rank:
        mark.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    requests: list[int] = []

    def request(number: int, _: object) -> None:
        requests.append(number)
        if len(requests) > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, request)
    processes.gather(None)


def crash(stage: str, mark: Path) -> None:
    """The second process fails, while the first one is in a stage that takes longer than the grace period."""
    processes = join_processes("cpu")
    with heartbeat.stage(stage):
        processes.gather(None)
        if not processes.first:
            end(7)
        time.sleep(3)
        mark.touch()


@pytest.mark.parametrize("stage", [heartbeat.SAVING, "rollout"])
def test_a_save_is_finished_after_another_process_has_crashed(stage, tmp_path):
    with pytest.raises(ExitWithCode) as caught:
        launch(2, partial(crash, stage, tmp_path / "saved"))
    assert caught.value.code == 7
    assert (tmp_path / "saved").exists() == (stage == heartbeat.SAVING)
