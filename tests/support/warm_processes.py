"""Starts the processes of `tdmr1_cli.multiprocess.launch` in forks of one process that has imported torch and tdmr1.

The fork server of `multiprocessing` imports everything once. Its children get the current stderr, directory and
environment of the parent, as new processes do. Tests of the command line start real processes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

import pytest
from torch.multiprocessing.spawn import start_processes

from support.paths import ROOT, TESTS


@pytest.fixture(autouse=True)
def warm_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a test module that imports this name, `launch` forks processes instead of spawning them."""
    multiprocessing.set_forkserver_preload(["support.warm_import"])
    with monkeypatch.context() as patched:  # the server finds its modules by this path
        patched.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(TESTS)]))
        forkserver.ensure_running()
    monkeypatch.setattr("torch.multiprocessing.start_processes", _start)


def _start(function: Callable[..., None], arguments: tuple[Any, ...], *, nprocs: int, join: bool) -> Any:
    place = (os.getpid(), os.getcwd(), dict(os.environ))
    return start_processes(_run, (place, function, arguments), nprocs=nprocs, join=join, start_method="forkserver")


def _run(rank: int, place: tuple[int, str, dict[str, str]], function: Callable[..., None], arguments: Any) -> None:
    parent, directory, environment = place
    stderr = os.open(f"/proc/{parent}/fd/2", os.O_WRONLY | os.O_APPEND)
    os.dup2(stderr, 2)
    os.close(stderr)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    function(rank, *arguments)
