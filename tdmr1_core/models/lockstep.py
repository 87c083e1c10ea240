"""Keeps processes in step whose networks are sharded, because each pass of such a network is an exchange of all.

Processes make different numbers of passes: an evaluation is divided unevenly, prompts may be cached in one process
only, and image grids are drawn by the first process. So before each pass, and before each exchange of data, a process
states its next operation to all others. The first one in the order of `Lockstep.add` is done by all. A process that
wants another operation takes part in it with an input of one row, whose result is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tdmr1_core.distributed import Processes


@dataclass(eq=False)
class Lockstep:
    """The operations of all processes, in the order in which they are done."""

    processes: Processes
    _participate: list[Callable[[], None]] = field(default_factory=list, init=False)
    _participates: bool = field(default=False, init=False)
    """Whether this process takes part in an operation of another one."""

    def add(self, participate: Callable[[], None]) -> int:
        """Add an operation and return its number. `participate` does it without using the result."""
        self._participate.append(participate)
        return len(self._participate) - 1

    def start(self) -> None:
        """Keep in step from now on. All processes call this together, after all of them have added all operations."""
        self.processes.before_exchange.append(lambda: self.agree(len(self._participate)))

    @contextmanager
    def operation(self, number: int) -> Iterator[None]:
        """A context for the operation with this number, which all processes enter together."""
        if self._participates:
            yield
            return
        self.agree(number)
        yield
        self.processes.wait_for_device()

    def agree(self, wanted: int) -> None:
        """Take part in the operations of other processes until the one that this process wants is the next."""
        while (chosen := min(self.processes.exchange_number(wanted))) != wanted:
            self._participates = True
            try:
                self._participate[chosen]()
                self.processes.wait_for_device()
            finally:
                self._participates = False
