"""Starts several processes of one run, and reports how they ended.

The elastic launcher of torch is not used here: it kills processes half a minute after Ctrl-C, possibly before the
iteration is finished and saved. Runs also work under it (torchrun, `accelerate launch`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children, connection
from multiprocessing.process import BaseProcess
from types import FrameType

from tdmr1_cli.error_boundary import PEER_EXITED, guarded
from tdmr1_cli.signals import ExitWithCode
from tdmr1_core.errors import Tdmr1Error

GRACE = 10.0
"""Seconds that the other processes have to exit after one has crashed."""


def launch(count: int, job: Callable[[], None]) -> None:
    """Run a picklable job in `count` processes. Only the first one prints.

    SIGINT and SIGTERM are passed on to all of them. If one crashes, the others are ended. Raises ExitWithCode with the
    exit code of a process that failed, and Tdmr1Error for a process that was killed.
    """
    from torch.multiprocessing import start_processes

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with _forward_signals():
        context = start_processes(_run_process, (count, _free_port(), job), nprocs=count, join=False)
        codes = _wait(context.processes)
    crashed = {rank: code for rank, code in enumerate(codes) if code not in (0, PEER_EXITED)}
    if not crashed and any(codes):
        raise Tdmr1Error(
            f"the connection between the {count} processes broke",
            "set TDMR1_DEBUG=1 to see the error, and try again",
            code="process-failed",
            values={"processes": count},
        )
    if crashed:
        rank, code = next(iter(crashed.items()))
        if code < 0:
            raise Tdmr1Error(
                f"process {rank + 1} of {count} was killed by {signal.Signals(-code).name}",
                "SIGKILL usually means that memory ran out: resume the run with fewer processes",
                code="process-failed",
                values={"process": rank + 1, "processes": count, "signal": signal.Signals(-code).name},
            )
        raise ExitWithCode(code)


def _run_process(rank: int, count: int, port: int, job: Callable[[], None]) -> None:
    """One of the processes. It has its own process group, so that Ctrl-C reaches it only through the launcher."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**ranks, **rendezvous}.items()})
    sys.exit(guarded(lambda: _done(job)))


def _done(job: Callable[[], None]) -> int:
    job()
    return 0


def _wait(processes: Sequence[BaseProcess]) -> list[int]:
    """All exit codes. After a crash the other processes have GRACE seconds to exit before they are killed."""
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    codes = [0] * len(processes)
    crashed = False
    while running:
        ended = connection.wait(list(running), GRACE if crashed else None)
        for sentinel in ended:
            rank = running.pop(sentinel)  # type: ignore[arg-type]
            processes[rank].join()
            codes[rank] = processes[rank].exitcode or 0
            crashed = crashed or codes[rank] not in (0, PEER_EXITED)
        if not ended:
            for rank in running.values():
                processes[rank].kill()
                processes[rank].join()
                codes[rank] = PEER_EXITED
            running = {}
    return codes


@contextmanager
def _forward_signals() -> Iterator[None]:
    """Forward SIGINT and SIGTERM to every process."""

    def forward(number: int, frame: FrameType | None) -> None:
        for process in active_children():
            if process.pid is not None:
                os.kill(process.pid, number)

    former = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
