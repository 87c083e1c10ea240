"""One batch on any hardware: how far metrics and weights are from those of the same run in one process, all at once.

    python benchmarks/equivalence.py --output build/equivalence

Every member of the class is three iterations of the real command line on the embedded model with the same global batch:
two processes, micro-batches, a stop after every iteration, another number of processes when it goes on, rewards that
are waited for before sampling goes on, and rewards that answer only when all is sampled. What is compared are the lines
of metrics but for the clock's, and every weight of the last checkpoint: LoRAs and their averages.

    python benchmarks/equivalence.py --output build/equivalence --precisions fp64 --rewrite-golden

writes the metrics of the first member and the norms of its weights to `tests/golden/three_iterations.json`, by which a
test sees that the algorithm has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from children import after, child, load_libraries, timeless

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "three_iterations.json"
ITERATIONS = 3
SMALL = ("batch.groups=2", "batch.group_size=4", "surrogate.trust_region=0.0001", "surrogate.drift_threshold=0.05")
SMALL += ("saving.samples_every=0", "saving.tensorboard=false", "evaluation.images=1", "guard.enabled=false")
PATIENCE = 120.0
"""Seconds that a reward waits for the end of sampling."""
POLL = 0.02
"""Seconds between two looks for a file."""


@dataclass(frozen=True)
class Member:
    """One way to run the batch: settings, processes from the start or after a stop, and what is arranged in a child."""

    name: str
    settings: tuple[str, ...] = ()
    processes: tuple[int, ...] = (1,)
    """Of each part of the run; every part but the last is stopped after an iteration."""
    prepare: Callable[[], None] | None = None


def _wait_for_every_reward() -> None:
    """No reward is at work while sampling goes on."""
    from tdmr1_core.stages.scoring import ScoringStage

    submit = ScoringStage.submit

    def waiting(self: ScoringStage, *given: Any) -> None:
        submit(self, *given)
        for future in self._futures:
            future.result()

    ScoringStage.submit = waiting  # type: ignore[method-assign]


def _answer_late() -> None:
    """No reward answers before all is sampled, which works only while sampling does not wait for it."""
    from tdmr1_core.stages.rollout import RolloutStage
    from tdmr1_rewards.calling.thread import ThreadHost

    sampled, run, call = threading.Event(), RolloutStage.run, ThreadHost.call

    def sampling(self: RolloutStage, *given: Any) -> Any:
        sampled.clear()
        try:
            return run(self, *given)
        finally:
            sampled.set()

    def answering(self: ThreadHost, *given: Any) -> Any:
        if not sampled.wait(PATIENCE):
            raise TimeoutError("sampling waits for a reward")
        return call(self, *given)

    RolloutStage.run, ThreadHost.call = sampling, answering  # type: ignore[method-assign]
    sampled.set()  # evaluations come before the first rollout


ALONE = Member("1 process, all at once")
MEMBERS = (
    Member("2 processes", processes=(2,)),
    Member("micro-batch 1", ("batch.micro_batch=1",)),
    Member("micro-batch 2", ("batch.micro_batch=2",)),
    Member("micro-batch 4", ("batch.micro_batch=4",)),
    Member("stopped after every iteration", processes=(1,) * ITERATIONS),
    Member("1 process, then 2", processes=(1, 2)),
    Member("2 processes, then 1", processes=(2, 1)),
    Member("rewards before sampling goes on", ("batch.micro_batch=4",), prepare=_wait_for_every_reward),
    Member("rewards while sampling goes on", ("batch.micro_batch=4",), prepare=_answer_late),
)
NAMES = tuple(member.name for member in MEMBERS)


@dataclass(frozen=True)
class Records:
    """What a run leaves: timeless metrics by iteration, and weights by role and name."""

    metrics: list[dict[str, float]]
    weights: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path) -> Records:
        """Of a finished run."""
        from safetensors.numpy import load_file

        checkpoints = folder / "checkpoints"
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, ITERATIONS + 1)), f"{folder} is not finished"
        latest = checkpoints / (checkpoints / "latest").read_text().strip()
        return cls([timeless(row) for row in rows], load_file(latest / "weights.safetensors"))

    def distance(self, other: Records) -> dict[str, dict[str, float]]:
        """Largest and mean absolute difference of all metrics, and of all weights."""
        assert [set(row) for row in self.metrics] == [set(row) for row in other.metrics]
        assert self.weights.keys() == other.weights.keys()
        pairs = zip(self.metrics, other.metrics, strict=True)
        numbers = np.array([abs(one[name] - two[name]) for one, two in pairs for name in one])
        weights = np.concatenate([np.abs(self.weights[name] - other.weights[name]).ravel() for name in self.weights])
        return {
            "metrics": {"max": float(numbers.max()), "mean": float(numbers.mean())},
            "weights": {"max": float(weights.max()), "mean": float(weights.mean())},
        }

    def golden(self) -> dict[str, Any]:
        """What is kept of them: all metrics, and the norm of each role's weights."""
        squares: dict[str, float] = {}
        for name, value in self.weights.items():
            role = name.partition("/")[0]
            squares[role] = squares.get(role, 0.0) + float((value.astype(np.float64) ** 2).sum())
        return {"metrics": self.metrics, "norms": {role: square**0.5 for role, square in sorted(squares.items())}}


def run(member: Member, precision: str, folder: Path) -> Records:
    """Run it to the end, part by part."""
    settings = (*SMALL, f"model.precision={precision}", f"iterations={ITERATIONS}", *member.settings)
    start = ["train", *(part for setting in settings for part in ("--set", setting)), "--output", str(folder)]
    for part, processes in enumerate(member.processes):
        arguments = ["train", "--resume", str(folder)] if part else start
        arguments = [*arguments, "--quiet", *(["--processes", str(processes)] if processes > 1 else [])]
        last = part == len(member.processes) - 1
        log = folder.with_name(f"{folder.name}.log")
        stop = _stop_after_one if processes == 1 else partial(_stop_once_there, folder / "metrics.jsonl")
        code = child(arguments, log, member.prepare if last else stop)
        assert code == (0 if last else 130), f"{member.name} ended with exit code {code}: see {log}"
    return Records.read(folder)


def _stop_after_one() -> None:
    """Ctrl-C in the first iteration that this process makes, when its metrics are written."""
    from tdmr1_core.runs.metrics_log import Tracker

    after(Tracker, "metrics", 1, lambda: os.kill(os.getpid(), signal.SIGINT))


def _stop_once_there(metrics: Path) -> None:
    """Ctrl-C to whoever has started several processes, when the first iteration's metrics are there."""

    def watch() -> None:
        while not metrics.exists():
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def compare(
    precision: str, names: Sequence[str], output: Path
) -> tuple[Records, dict[str, dict[str, dict[str, float]]]]:
    """The records of one process, and how far other members are from them."""
    alone = run(ALONE, precision, output / f"{precision}-alone")
    found = {}
    for number, member in enumerate(member for member in MEMBERS if member.name in names):
        found[member.name] = run(member, precision, output / f"{precision}-{number}").distance(alone)
        print(member.name, precision, json.dumps(found[member.name]), file=sys.stderr, flush=True)
    return alone, found


def main() -> int:
    """Compare, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a folder for the runs; it must be new")
    parser.add_argument("--precisions", nargs="+", choices=("fp64", "fp32"), default=["fp64", "fp32"])
    parser.add_argument("--members", nargs="+", choices=NAMES, default=NAMES, help="which to run (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--rewrite-golden", action="store_true", help=f"write {GOLDEN.name}")
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    load_libraries()
    found, golden = {}, {}
    for precision in options.precisions:
        alone, found[precision] = compare(precision, options.members, options.output)
        golden[precision] = alone.golden()
    if options.rewrite_golden:
        GOLDEN.write_text(json.dumps(golden["fp64"], indent=1) + "\n")
    if options.json:
        print(json.dumps({"differences": found, "golden": golden}))
    else:
        print("\n".join(table(found)))
    return 0


def table(found: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[str]:
    """The lines of a table in Markdown."""
    cells = [(kind, size) for kind in ("metrics", "weights") for size in ("max", "mean")]
    columns = [f"{precision}: {kind}, {size}" for precision in found for kind, size in cells]
    lines = [f"| same batch, run as | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name in next(iter(found.values())):
        shown = [f"{found[precision][name][kind][size]:.1e}" for precision in found for kind, size in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
