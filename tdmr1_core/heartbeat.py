"""Whether the processes of a run make progress. A process that waits for another one names it if it makes none.

Each process has a stage (`stage`) and counts its steps (`step`). A thread of each process sends both to the others.
The time that a process takes for a stage is no measure of a fault: rewards have time limits of their own, and a model
may be large. So a process counts as lost if nothing is heard from it, or if its main thread makes no step in a stage
that is `limited`. In other stages, the thread alone shows that the process runs. A process that waits for others makes
progress, unless all of them wait.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tdmr1_rewards.texts.documents import parse_json

Address = tuple[str, int]

LONGEST_INTERVAL = 10.0
"""Seconds between two reports of a process; less for a short time-out."""
REPORTS = 5
"""Reports of a process within the time-out, at least. Some may be lost."""
LOADING, SAVING = "loading", "saving"


@dataclass
class _Work:
    """What the main thread does."""

    stage: str = LOADING
    limited: bool = False
    steps: int = 0


_work = _Work()
_listeners: list[Callable[[str], None]] = []


def step() -> None:
    """Count a step of the current stage."""
    _work.steps += 1


@contextmanager
def stage(name: str, *, limited: bool = True) -> Iterator[None]:
    """Within the context, this process is in the stage `name`. In a `limited` stage it must make steps."""
    former = _work.stage, _work.limited
    _enter(name, limited)
    try:
        yield
    finally:
        _enter(*former)


def _enter(name: str, limited: bool) -> None:
    _work.stage, _work.limited = name, limited
    step()
    for listener in _listeners:
        listener(name)


def listen(listener: Callable[[str], None]) -> None:
    """Call `listener` with the name of each stage that this process enters."""
    _listeners.append(listener)


@dataclass
class Peer:
    """What is known of another process."""

    stage: str = LOADING
    number: int = -1
    """Grows while the process makes progress; -1 before its first report."""
    waited: float = 0.0
    """Seconds that it has waited for others without a break."""
    silent: float = 0.0
    """Seconds since its number grew. Only seconds count in which this process ran too."""


@dataclass
class Heartbeat:
    """Reports the progress of this process to the others, and receives theirs, as UDP datagrams.

    Datagrams need no connection that blocks or breaks, whichever process stops. A process from which none arrives at
    all, because a firewall rejects them, is never lost.
    """

    rank: int
    limit: float
    """Seconds without progress after which a process is lost."""
    host: str
    """A name or address of the machine of the first process, through which the others are reached."""
    peers: dict[int, Peer] = field(default_factory=dict, init=False)
    _addresses: Sequence[Address] = field(default=(), init=False)
    _token: str = field(default="", init=False)
    _waited_since: float | None = field(default=None, init=False)
    _closed: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        family, *_, address = socket.getaddrinfo(self.host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing, and selects the address of this machine on the way there
            own = probe.getsockname()
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.bind((own[0], 0))
        self._interval = min(LONGEST_INTERVAL, self.limit / REPORTS)

    def offer(self) -> tuple[Address, str]:
        """The address of this process, and a token. Those of all processes are the arguments of `start`."""
        host, port, *_ = self._socket.getsockname()
        return (host, port), secrets.token_hex(8)

    def start(self, offers: Sequence[tuple[Address, str]]) -> None:
        """Send a first report, and begin to receive. Datagrams without the token of the first process are ignored."""
        self._addresses, self._token = [address for address, _ in offers], offers[0][1]
        self.peers = {rank: Peer() for rank in range(len(offers)) if rank != self.rank}
        self._send(0)
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the context, the main thread waits for other processes."""
        self._waited_since = time.monotonic()
        try:
            yield
        finally:
            self._waited_since = None
            step()

    def lost(self) -> dict[int, Peer]:
        """The processes that are lost, by rank. If all processes have waited too long for each other: all others."""
        peers = self.peers
        found = {rank: peer for rank, peer in peers.items() if peer.number >= 0 and peer.silent >= self.limit}
        if not found and min([self._waited(), *(peer.waited for peer in peers.values())]) >= self.limit:
            return dict(peers)
        return found

    def _waited(self) -> float:
        since = self._waited_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        number, steps, next_report = 0, -1, 0.0
        with self._socket:
            while not self._closed.is_set():
                now = time.monotonic()
                if now >= next_report:
                    next_report = now + self._interval
                    if steps != _work.steps or not _work.limited or self._waited_since is not None:
                        number, steps = number + 1, _work.steps
                    self._send(number)
                    for peer in self.peers.values():
                        peer.silent += self._interval
                self._socket.settimeout(max(0.01, next_report - now))
                with suppress(OSError):  # also a time-out, and the refusal of a process that has ended
                    self._receive(self._socket.recv(1 << 12))

    def _send(self, number: int) -> None:
        report = [self._token, self.rank, number, _work.stage, self._waited()]
        for rank in self.peers:
            with suppress(OSError):
                self._socket.sendto(json.dumps(report).encode(), self._addresses[rank])

    def _receive(self, datagram: bytes) -> None:
        with suppress(ValueError, TypeError, KeyError):
            token, rank, number, stage, waited = parse_json(datagram)
            if token != self._token:
                return
            peer = self.peers[rank]
            if number > peer.number:
                peer.number, peer.silent = number, 0.0
            peer.stage, peer.waited = str(stage), float(waited)


def coordinating_host() -> str:
    """The machine of the first process, from the environment."""
    return os.environ.get("MASTER_ADDR", "127.0.0.1")
