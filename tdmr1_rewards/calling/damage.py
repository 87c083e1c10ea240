"""What happens after code of a reward has damaged this process so that it cannot go on. The program decides it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tdmr1_rewards.errors import Tdmr1Error

_handler: Callable[[Tdmr1Error], None] | None = None


@contextmanager
def on_damage(handler: Callable[[Tdmr1Error], None]) -> Iterator[None]:
    """Within the context, call a function for damage, in the thread that found it. It ends the program."""
    global _handler
    former, _handler = _handler, handler
    try:
        yield
    finally:
        _handler = former


def report_damage(error: Tdmr1Error) -> None:
    """Call the function of `on_damage`. Raises the error if there is none."""
    if _handler is not None:
        _handler(error)
    raise error
