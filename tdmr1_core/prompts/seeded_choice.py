"""A seeded choice that is the same on every machine and under every version of Python."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def choose(items: Iterable[Item], count: int, seed: str, key: Callable[[Item], str] = str) -> list[Item]:
    """`count` of the items (all, if there are fewer) in an order that only `seed` and their `key` decide."""

    def place(item: Item) -> bytes:
        return hashlib.sha256(f"{seed}|{key(item)}".encode()).digest()

    return sorted(items, key=place)[:count]
