"""A long run: memory, descriptors, threads and the time of an iteration stay as they are."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stress.case import Case, small, steps_of
from stress.scheduler import Part

EVERY = 0.5
"""Seconds between two samples."""
SETTLED = 0.1
"""Fraction of the run that is not compared, in which memory is still allocated."""
GROWTH = {"rss": 1.05, "descriptors": 1.0, "threads": 1.0, "cpu": 1.25}
"""Largest factor between the medians of the first and the last quarter."""
SLACK = {"rss": 24.0, "descriptors": 2.0, "threads": 1.0, "cpu": 0.05}
"""Growth that is allowed in any case: MiB, numbers, and seconds of an iteration."""


@dataclass(frozen=True)
class Sample:
    """A process at one time: iterations, RSS in MiB, open descriptors, threads and processor seconds."""

    step: int
    rss: float
    descriptors: int
    threads: int
    cpu: float


def part(iterations: int) -> Part:
    """The part with a run of this many iterations."""
    return Part("iterations", partial(_run, iterations), seconds=1.0 * iterations, limit=3600, size=iterations)


def _run(iterations: int, case: Case) -> None:
    folder = case.folder / "run"
    settings = small(f"iterations={iterations}", "saving.checkpoint_every=20", "saving.tensorboard=true")
    samples: list[Sample] = []

    def meanwhile(process: int) -> None:
        threading.Thread(target=_watch, args=(process, folder, samples), daemon=True).start()

    case.tdmr1("train", *settings, "--quiet", "--output", folder, limit=3500, allowed=[0], meanwhile=meanwhile)
    case.check(steps_of(folder) == list(range(1, iterations + 1)), "metrics of iterations are lost")
    settled = [sample for sample in samples if sample.step > SETTLED * iterations]
    quarter = len(settled) // 4
    if not case.check(quarter >= 3, f"only {len(settled)} samples: set more --iterations"):
        return
    first, last = settled[:quarter], settled[-quarter:]
    for name in ("rss", "descriptors", "threads"):
        _compare(case, name, *(statistics.median(getattr(each, name) for each in part) for part in (first, last)))
    _compare(case, "cpu", _seconds_of_iteration(first), _seconds_of_iteration(last))


def _compare(case: Case, name: str, before: float, after: float) -> None:
    case.notes.append(f"{name}: {before:.3g} in the first quarter, {after:.3g} in the last")
    limit = max(before * GROWTH[name], before + SLACK[name])
    case.check(after <= limit, f"{name} grows from {before:.4g} to {after:.4g}")


def _seconds_of_iteration(samples: Sequence[Sample]) -> float:
    """Processor seconds of an iteration, which do not depend on the load of the machine."""
    return (samples[-1].cpu - samples[0].cpu) / max(1, samples[-1].step - samples[0].step)


def _watch(process: int, folder: Path, samples: list[Sample]) -> None:
    """Sample a process until it ends."""
    metrics, step, seen = folder / "metrics.jsonl", 0, 0
    while True:
        try:
            if metrics.exists() and metrics.stat().st_size != seen:
                with metrics.open("rb") as file:
                    file.seek(seen)
                    added = file.read()
                step, seen = step + added.count(b"\n"), seen + len(added)
            samples.append(_sample(process, step))
        except (OSError, IndexError):
            return
        time.sleep(EVERY)


def _sample(process: int, step: int) -> Sample:
    place = Path(f"/proc/{process}")
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    pages, threads = int((place / "statm").read_text().split()[1]), int(fields[17])
    rss = pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Sample(step, rss, len(os.listdir(place / "fd")), threads, cpu)
