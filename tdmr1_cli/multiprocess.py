"""Starting several processes of one run, and what is said of their end.

torch's elastic launcher is not used because it kills processes half a minute after a Ctrl-C, in the middle of an
iteration that is to be finished and saved. Under it (torchrun, `accelerate launch`) a run works as well.
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

from tdmr1_cli.main import PEER_EXITED, guarded
from tdmr1_cli.signals import ExitWithCode
from tdmr1_core.distributed import rank_and_world
from tdmr1_core.errors import Tdmr1Error

GRACE = 10.0
"""Seconds that the others have to end by themselves when one process has crashed."""


def wanted(processes: int | None) -> int:
    """How many processes the run is to have. Raises Tdmr1Error where others were started already."""
    started = rank_and_world()[1]
    if processes and started > 1:
        raise Tdmr1Error(f"--processes {processes}: this is one of {started} processes already", "leave it out")
    return processes or started


def launch(count: int, job: Callable[[], None]) -> None:
    """Do a picklable job in `count` processes at once; the first one speaks.

    SIGINT and SIGTERM are passed on to all of them. If one crashes, the others are ended. Raises ExitWithCode with the
    exit code of a process that failed, and Tdmr1Error for a process that was killed.
    """
    from torch.multiprocessing import start_processes

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with _handing_on():
        context = start_processes(_take_part, (count, _free_port(), job), nprocs=count, join=False)
        codes = _wait(context.processes)
    crashed = {rank: code for rank, code in enumerate(codes) if code not in (0, PEER_EXITED)}
    if not crashed and any(codes):
        raise Tdmr1Error(f"the {count} processes lost one another", "set TDMR1_DEBUG=1 to see how, and try again")
    if crashed:
        rank, code = next(iter(crashed.items()))
        if code < 0:
            raise Tdmr1Error(
                f"process {rank + 1} of {count} was killed by {signal.Signals(-code).name}",
                "SIGKILL mostly means too little memory; the last checkpoint is untouched",
            )
        raise ExitWithCode(code)


def _take_part(rank: int, count: int, port: int, job: Callable[[], None]) -> None:
    """One of the processes, away from the terminal's Ctrl-C: whoever started it hands that on, once."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    place_of_process = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**place_of_process, **rendezvous}.items()})
    sys.exit(guarded(lambda: _done(job)))


def _done(job: Callable[[], None]) -> int:
    job()
    return 0


def _wait(processes: Sequence[BaseProcess]) -> list[int]:
    """Every exit code. Once a process has crashed the others have a little time to notice, and are killed."""
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
def _handing_on() -> Iterator[None]:
    """Signals that ask for a stop go to every process that is there."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        for process in active_children():
            if process.pid is not None:
                os.kill(process.pid, number)

    former = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
