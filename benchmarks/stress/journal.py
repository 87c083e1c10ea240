"""The journal of finished items, and the progress that is printed."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""A finished item: part, number, seed, count, codes, faults, notes, seconds, and seconds of the processor (cpu)."""
Key = tuple[str, int]


class Journal:
    """The finished items of an output folder, one JSON object a line."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self.rows: dict[Key, Row] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # a line that was interrupted
                row = json.loads(line)
                if row["seed"] != seed:
                    raise SystemExit(f"{path} has items of seed {row['seed']}: use that --seed, or another --output")
                self.rows[row["part"], row["number"]] = row

    def add(self, row: Row) -> None:
        """Add a finished item."""
        self.rows[row["part"], row["number"]] = row
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class Progress:
    """One line a second at most: finished items, rate, and the time that is left.

    `expected` has the seconds of an item of each part, and `left` the number of its items.
    """

    def __init__(self, expected: Mapping[str, float], left: Mapping[str, int], workers: int) -> None:
        self._expected = expected
        self._left = dict(left)
        self._workers = workers
        self._times: dict[str, list[float]] = defaultdict(list)
        self._total = sum(left.values())
        self._shown = 0.0

    def show(self, row: Row) -> None:
        """Count a finished item."""
        name = row["part"]
        self._left[name] -= 1
        self._times[name].append(row["seconds"])
        for fault in row["faults"]:
            print(f"fault in {name}:{row['number']}: {fault.splitlines()[0][:300]}", file=sys.stderr, flush=True)
        if time.monotonic() - self._shown < 1 and sum(self._left.values()):
            return
        self._shown = time.monotonic()
        left = sum(count * self._mean(part) for part, count in self._left.items()) / self._workers
        done = self._total - sum(self._left.values())
        shown = f"{done}/{self._total} items  {name}: {self._left[name]} left, {self._mean(name):.1f} s each"
        print(f"{shown}  {int(left) // 60}:{int(left) % 60:02d} left", file=sys.stderr, flush=True)

    def _mean(self, part: str) -> float:
        times = self._times[part]
        return sum(times) / len(times) if times else self._expected[part]
