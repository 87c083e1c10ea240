"""Starts several processes of one run, and reports how they ended.

The elastic launcher of torch is not used here: it kills processes half a minute after Ctrl-C, possibly before the
iteration is finished and saved. Runs also work under it (torchrun, `accelerate launch`).
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import active_children, connection, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from types import FrameType
from typing import Any

from tdmr1_cli.error_boundary import PEER_EXITED, guarded, report_stray_exceptions
from tdmr1_cli.exits import end, exit_at_once, settle
from tdmr1_cli.output import only_results_on_stdout, stdout_of_the_program
from tdmr1_cli.signals import ExitWithCode, sigterm_as_interrupt
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.heartbeat import SAVING, listen

GRACE = 10.0
"""Seconds that the other processes have to exit after one has crashed, or after they have saved."""
SAVING_LIMIT = 600.0
"""Seconds after a crash until a process is killed although it saves."""
STOP_GRACE = 4.0
"""Seconds that processes have to exit after a second stop request."""
POLL = 0.2
"""Seconds between two checks whether a process must be killed."""
PORTS = range(20_000, 32_768)
"""Ports that Linux, macOS and Windows do not give to programs that ask for any port."""
STOPPING = (signal.SIGINT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1
"""The operation of Linux's `prctl` that sets the signal sent when the parent ends."""


def launch(count: int, job: Callable[[], None]) -> None:
    """Run a picklable job in `count` processes. Only the first one prints.

    SIGINT and SIGTERM are passed on to all of them; those that remain STOP_GRACE seconds after the second signal are
    killed. If one crashes, the others are ended, but may finish saving. If this process is killed, all end. Raises
    ExitWithCode with the exit code of a process that failed, Tdmr1Error for a process that was killed, and
    KeyboardInterrupt if the first process was stopped without a report.
    """
    from torch.multiprocessing import start_processes

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    _start_resource_tracker()
    saving = RawArray("b", count)
    with _forward_signals() as requests:
        with stdout_of_the_program(), _signals_blocked():
            arguments = (count, _free_port(), saving, job)
            context = start_processes(_run_process, arguments, nprocs=count, join=False)
        codes = _wait(context.processes, requests, saving)
    if requests and codes[0] in (PEER_EXITED, *(-number for number in STOPPING)):
        raise KeyboardInterrupt
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


def _run_process(rank: int, count: int, port: int, saving: Any, job: Callable[[], None]) -> None:
    """One of the processes. It has its own process group, so that Ctrl-C reaches it only through the launcher."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    _end_with_launcher()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in {**ranks, **rendezvous}.items()})

    def note_saving(stage: str) -> None:
        saving[rank] = stage == SAVING

    listen(note_saving)
    report_stray_exceptions()
    code = guarded(lambda: _done(job))
    settle(code)
    exit_at_once(code)


def _done(job: Callable[[], None]) -> int:
    with sigterm_as_interrupt(), only_results_on_stdout():
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        job()
    return 0


def _end_with_launcher() -> None:
    """End this process when the launcher ends. On Linux, this also holds for a process that is stopped or hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = parent_process()
    assert launcher is not None

    def wait() -> None:
        connection.wait([launcher.sentinel])
        end(1)

    threading.Thread(target=wait, name="launcher", daemon=True).start()


def _wait(processes: Sequence[BaseProcess], requests: Sequence[float], saving: Sequence[int]) -> list[int]:
    """All exit codes. Processes that do not exit in time are killed; their code is PEER_EXITED.

    `requests` has the times of stop requests, and `saving` whether each process saves.
    """
    running = {process.sentinel: rank for rank, process in enumerate(processes)}
    codes = [0] * len(processes)
    crashed_at = leave_by = float("inf")
    while running:
        for sentinel in connection.wait(list(running), POLL):
            rank = running.pop(sentinel)  # type: ignore[arg-type]
            processes[rank].join()
            codes[rank] = processes[rank].exitcode or 0
            saving[rank] = False  # type: ignore[index]
            if codes[rank] not in (0, PEER_EXITED):
                crashed_at = min(crashed_at, time.monotonic())
        now = time.monotonic()
        if any(saving) or leave_by == float("inf"):
            leave_by = min(max(crashed_at, now) + GRACE, crashed_at + SAVING_LIMIT)
        if now > leave_by or (len(requests) > 1 and now > requests[1] + STOP_GRACE):
            for rank in running.values():
                processes[rank].kill()
                processes[rank].join()
                codes[rank] = PEER_EXITED
            running = {}
    return codes


@contextmanager
def _forward_signals() -> Iterator[Sequence[float]]:
    """Forward SIGINT and SIGTERM to every process. Yields the times of the signals so far."""
    requests: list[float] = []

    def forward(number: int, frame: FrameType | None) -> None:
        requests.append(time.monotonic())
        for process in active_children():
            if process.pid is not None:
                os.kill(process.pid, number)

    former = {number: signal.signal(number, forward) for number in STOPPING}
    try:
        yield requests
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Within the context, SIGINT and SIGTERM wait, also in processes that are started there, until they unblock them.

    A process that still imports could not report that it was stopped.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _start_resource_tracker() -> None:
    """Start the process of Python that removes the semaphores of killed processes, without its warning about them.

    It must run before signals are blocked, because its start unblocks them.
    """
    former = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (former, "ignore:resource_tracker:UserWarning")))
    try:
        resource_tracker.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if former is not None:
            os.environ["PYTHONWARNINGS"] = former


def _free_port() -> int:
    """A free port of this machine, if possible outside of the range from which systems choose ports for programs.

    Some seconds pass until the first process opens it.
    """
    for port in (*random.SystemRandom().sample(PORTS, 50), 0):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("this machine has no free port")
