"""A seeded random choice that does not depend on the machine or the version of Python."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def choose(items: Iterable[Item], count: int, seed: str, key: Callable[[Item], str] = str) -> list[Item]:
    """At most `count` of the items, in an order that depends only on `seed` and their `key`."""

    def position(item: Item) -> bytes:
        return hashlib.sha256(f"{seed}|{key(item)}".encode()).digest()

    return sorted(items, key=position)[:count]
