"""Checks what a reward server reports about itself: the protocol version, and the answer to GET /info."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from tdmr1_rewards.api import ImageFormat
from tdmr1_rewards.calling.wire import PROTOCOL, as_integer, plain
from tdmr1_rewards.errors import Tdmr1Error, shorten

LONGEST_TIMEOUT = 1e9
"""The largest time-out of a server in seconds (30 years). Timers cannot represent much larger numbers."""


def check_protocol(answer: Mapping[str, Any], base: str) -> None:
    """Raise Tdmr1Error unless an answer of the server at `base` has this protocol version."""
    found = answer.get("protocol")
    if as_integer(found) == PROTOCOL:
        return
    has = "does not report its protocol version" if found is None else f"has protocol version {shorten(repr(found))}"
    raise Tdmr1Error(
        f"the server at {base} {has}, but this tdmr1 needs version {PROTOCOL}",
        f'install the same version of tdmr1 on both machines; other servers send "protocol": {PROTOCOL} in each answer',
        code="server-protocol",
        values={"server": base, "found": plain(found), "expected": PROTOCOL},
    )


def read_info(info: Mapping[str, Any], base: str, reward: str) -> dict[str, Any]:
    """The facts in the answer of the server at `base` to GET /info: some of `batch_size`, `groupwise`, `image_format`,
    `timeout` (seconds; None is no limit), `max_body` (bytes), `summary` and `score_range`. Unknown fields are ignored.

    Raises Tdmr1Error for another protocol version, a server of another reward than `reward`, and invalid values.
    """
    check_protocol(info, base)
    name = info.get("name")
    if name != reward and not (isinstance(name, str) and re.fullmatch(r"[\w.-]+", name)):
        raise _invalid(base, "name", name, "the name of its reward: letters, digits, _ and -")
    if name != reward:
        raise Tdmr1Error(
            f"the server at {base} serves the reward {name!r}, not {reward!r}",
            f"write remote:{base}/{name}",
            code="reward-unknown",
            values={"reward": reward, "server": base, "found": name},
        )
    facts: dict[str, Any] = {}
    for field, (read, expected) in FACTS.items():
        value = info.get(field)
        if value is not None:
            facts[field] = read(value)
            if facts[field] is None:
                raise _invalid(base, field, value, expected)
        elif field == "timeout" and field in info:
            facts[field] = None
    return facts


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _positive(value: Any) -> int | None:
    number = as_integer(value)
    return number if number is not None and number > 0 else None


def _seconds(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 < value <= LONGEST_TIMEOUT else None


def _image_format(value: Any) -> str | None:
    return value if value in get_args(ImageFormat) else None


FACTS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "batch_size": (_positive, "an integer above 0"),
    "groupwise": (_flag, "true or false"),
    "image_format": (_image_format, " or ".join(f'"{known}"' for known in get_args(ImageFormat))),
    "timeout": (_seconds, f"a number above 0 and at most {LONGEST_TIMEOUT:.0f}, or null for no limit"),
    "max_body": (_positive, "an integer above 0"),
    "summary": (str, "a text"),
    "score_range": (str, "a text"),
}
"""The facts in an answer to GET /info: a function that returns the value, or None if it is invalid; valid values."""


def _invalid(base: str, field: str, value: Any, expected: str) -> Tdmr1Error:
    found = "is missing" if value is None else f"is {shorten(repr(value))}"
    return Tdmr1Error(
        f"in the answer of the server at {base} to GET /info, {field} {found}, but must be {expected}",
        "correct the server, or install the same version of tdmr1 on both machines",
        code="server-protocol",
        values={"server": base, "field": field, "found": plain(value), "expected": expected},
    )
