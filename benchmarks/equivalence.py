"""Run the same global batch in different ways and measure how much metrics and weights differ.

    python benchmarks/equivalence.py --output build/equivalence

Every variant is a run of three iterations of the command line on the embedded model with the same global batch: two
processes, micro-batches, a stop after every iteration, another number of processes after a resume, rewards that
sampling waits for, and rewards that return only after all sampling. The reference is one process with one micro-batch.
The variants with teaching prompts have a reference of their own, because they draw other prompts.
Compared are all metrics except times, all weights of the last checkpoint (LoRAs and their moving averages), and the
evaluations and guard readings at the start and at the end.

    python benchmarks/equivalence.py --output build/equivalence --precisions fp64 --rewrite-golden

writes the metrics of the reference and the norms of its weights to `tests/golden/three_iterations.json`. A test
compares the present code with this file, to detect a change of the algorithm.
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
from children import after, child, load_libraries, without_times

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "three_iterations.json"
ITERATIONS = 3
SMALL = ("batch.groups=2", "batch.group_size=4", "surrogate.trust_region=0.0001", "surrogate.drift_threshold=0.05")
SMALL += ("saving.samples_every=0", "saving.tensorboard=false", "evaluation.images=15")
GUARD = "guard/"
"""The prefix of metrics that come from evaluations."""
SAMPLING_TIMEOUT = 120.0
"""Seconds that a reward waits for the end of sampling."""
POLL = 0.02
"""Seconds between two checks for a file."""


@dataclass(frozen=True)
class Variant:
    """One way to run the batch. `prepare` is called in the child process of the last part."""

    name: str
    settings: tuple[str, ...] = ()
    processes: tuple[int, ...] = (1,)
    """The number of processes of each part of the run. Every part except the last is stopped after one iteration."""
    drawn: str = "uniform"
    """`batch.prompts` of the run and of its reference."""
    prepare: Callable[[], None] | None = None


def _wait_for_every_reward() -> None:
    """Sampling of the next micro-batch waits for all rewards."""
    from tdmr1_core.stages.scoring import ScoringStage

    submit = ScoringStage.submit

    def waiting(self: ScoringStage, *args: Any) -> None:
        submit(self, *args)
        for future in self._futures:
            future.result()

    ScoringStage.submit = waiting  # type: ignore[method-assign]


def _return_after_sampling() -> None:
    """Rewards return only after all sampling. This requires that sampling does not wait for them."""
    from tdmr1_core.stages.rollout import RolloutStage
    from tdmr1_rewards.calling.thread import ThreadHost

    sampled, run, call = threading.Event(), RolloutStage.run, ThreadHost.call

    def sampling(self: RolloutStage, *args: Any) -> Any:
        sampled.clear()
        try:
            return run(self, *args)
        finally:
            sampled.set()

    def scoring(self: ThreadHost, *args: Any) -> Any:
        if not sampled.wait(SAMPLING_TIMEOUT):
            raise TimeoutError("sampling waited for a reward")
        return call(self, *args)

    RolloutStage.run, ThreadHost.call = sampling, scoring  # type: ignore[method-assign]
    sampled.set()  # evaluations come before the first rollout


TEACHING = "teaching"
SHARDED = ("memory.shard=true",)
VARIANTS = (
    Variant("2 processes", processes=(2,)),
    Variant("micro-batch 1", ("batch.micro_batch=1",)),
    Variant("micro-batch 2", ("batch.micro_batch=2",)),
    Variant("micro-batch 4", ("batch.micro_batch=4",)),
    Variant("stopped after every iteration", processes=(1,) * ITERATIONS),
    Variant("1 process, then 2", processes=(1, 2)),
    Variant("2 processes, then 1", processes=(2, 1)),
    Variant("2 processes, sharded", SHARDED, processes=(2,)),
    Variant(
        "2 processes, sharded and recomputed",
        (*SHARDED, "memory.gradient_checkpointing=true", "batch.micro_batch=3"),
        processes=(2,),
    ),
    Variant("2 processes, sharded, then 1", SHARDED, processes=(2, 1)),
    Variant("1 process, then 2, sharded", SHARDED, processes=(1, 2)),
    Variant("rewards before sampling continues", ("batch.micro_batch=4",), prepare=_wait_for_every_reward),
    Variant("rewards after all sampling", ("batch.micro_batch=4",), prepare=_return_after_sampling),
    Variant("teaching prompts, 2 processes", processes=(2,), drawn=TEACHING),
    Variant("teaching prompts, stopped after every iteration", processes=(1,) * ITERATIONS, drawn=TEACHING),
    Variant("teaching prompts, 2 processes, then 1", processes=(2, 1), drawn=TEACHING),
)
NAMES = tuple(variant.name for variant in VARIANTS)


@dataclass(frozen=True)
class Records:
    """The results of a run: metrics of each iteration without times, weights by role and name, and evaluations.

    `evaluations` has every number of evaluations.jsonl and guard.jsonl by its place, and `texts` everything else.
    """

    metrics: list[dict[str, float]]
    weights: dict[str, np.ndarray]
    evaluations: dict[str, float]
    texts: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Records:
        """Read the results of a finished run."""
        from safetensors.numpy import load_file

        checkpoints = folder / "checkpoints"
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, ITERATIONS + 1)), f"{folder} is not finished"
        latest = checkpoints / (checkpoints / "latest").read_text().strip()
        metrics = [
            {name: value for name, value in without_times(row).items() if not name.startswith(GUARD)} for row in rows
        ]
        found = {
            f"{name} {line}/{key}": value
            for name in ("evaluations.jsonl", "guard.jsonl")
            for line, text in enumerate((folder / name).read_text().splitlines())
            for key, value in json.loads(text).items()
        }
        numbers = {place: value for place, value in found.items() if isinstance(value, float)}
        texts = {place: value for place, value in found.items() if place not in numbers}
        return cls(metrics, load_file(latest / "weights.safetensors"), numbers, texts)

    def distance(self, other: Records) -> dict[str, dict[str, float]]:
        """The largest and the mean absolute difference, of all metrics, all weights and all evaluations."""
        assert [set(row) for row in self.metrics] == [set(row) for row in other.metrics]
        assert self.weights.keys() == other.weights.keys()
        assert self.evaluations.keys() == other.evaluations.keys()
        assert self.texts == other.texts
        pairs = zip(self.metrics, other.metrics, strict=True)
        metrics = np.array([abs(one[name] - two[name]) for one, two in pairs for name in one])
        weights = np.concatenate([np.abs(self.weights[name] - other.weights[name]).ravel() for name in self.weights])
        evaluations = np.array([abs(value - other.evaluations[place]) for place, value in self.evaluations.items()])
        parts = {"metrics": metrics, "weights": weights, "evaluations": evaluations}
        return {name: {"max": float(part.max()), "mean": float(part.mean())} for name, part in parts.items()}

    def golden(self) -> dict[str, Any]:
        """The content of the golden file: all metrics, and the norm of the weights of each role."""
        squares: dict[str, float] = {}
        for name, value in self.weights.items():
            role = name.partition("/")[0]
            squares[role] = squares.get(role, 0.0) + float((value.astype(np.float64) ** 2).sum())
        return {"metrics": self.metrics, "norms": {role: square**0.5 for role, square in sorted(squares.items())}}


def run(variant: Variant, precision: str, folder: Path) -> Records:
    """Run all parts of a variant."""
    settings = (*SMALL, f"model.precision={precision}", f"iterations={ITERATIONS}", *variant.settings)
    settings = (*settings, f"batch.prompts={variant.drawn}")
    start = ["train", *(part for setting in settings for part in ("--set", setting)), "--output", str(folder)]
    for part, processes in enumerate(variant.processes):
        arguments = ["train", "--resume", str(folder)] if part else start
        arguments = [*arguments, "--quiet", *(["--processes", str(processes)] if processes > 1 else [])]
        last = part == len(variant.processes) - 1
        log = folder.with_name(f"{folder.name}.log")
        stop = _stop_after_one if processes == 1 else partial(_stop_when_written, folder / "metrics.jsonl")
        code = child(arguments, log, variant.prepare if last else stop)
        assert code == (0 if last else 130), f"{variant.name} ended with exit code {code}: see {log}"
    return Records.read(folder)


def _stop_after_one() -> None:
    """Send Ctrl-C to this process when it has written the metrics of its first iteration."""
    from tdmr1_core.runs.metrics_log import RunLog

    after(RunLog, "metrics", 1, lambda: os.kill(os.getpid(), signal.SIGINT))


def _stop_when_written(metrics: Path) -> None:
    """Send Ctrl-C to this process, which starts the others, when the metrics of the first iteration exist."""

    def watch() -> None:
        while not metrics.exists():
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def compare(
    precision: str, names: Sequence[str], output: Path
) -> tuple[Records, dict[str, dict[str, dict[str, float]]]]:
    """The records of the reference with uniform prompts, and the differences of the variants by name."""
    chosen = [variant for variant in VARIANTS if variant.name in names]
    references = {
        drawn: run(Variant("reference", drawn=drawn), precision, output / f"{precision}-reference-{drawn}")
        for drawn in dict.fromkeys(("uniform", *(variant.drawn for variant in chosen)))
    }
    differences = {}
    for number, variant in enumerate(chosen):
        records = run(variant, precision, output / f"{precision}-{number}")
        differences[variant.name] = records.distance(references[variant.drawn])
        print(variant.name, precision, json.dumps(differences[variant.name]), file=sys.stderr, flush=True)
    return references["uniform"], differences


def main() -> int:
    """Compare the variants and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a new folder for the runs")
    parser.add_argument("--precisions", nargs="+", choices=("fp64", "fp32"), default=["fp64", "fp32"])
    parser.add_argument(
        "--variants", nargs="+", choices=NAMES, default=NAMES, help="the variants to run (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument("--rewrite-golden", action="store_true", help=f"write {GOLDEN.name}")
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    load_libraries()
    differences, golden = {}, {}
    for precision in options.precisions:
        reference, differences[precision] = compare(precision, options.variants, options.output)
        golden[precision] = reference.golden()
    if options.rewrite_golden:
        GOLDEN.write_text(json.dumps(golden["fp64"], indent=1) + "\n")
    if options.json:
        print(json.dumps({"differences": differences, "golden": golden}))
    else:
        print("\n".join(table(differences)))
    return 0


def table(differences: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[str]:
    """The lines of a Markdown table, from `differences[precision][variant][metrics or weights][max or mean]`."""
    cells = [(kind, size) for kind in ("metrics", "weights") for size in ("max", "mean")]
    columns = [f"{precision}: {kind}, {size}" for precision in differences for kind, size in cells]
    lines = [f"| same batch, run with | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name in next(iter(differences.values())):
        shown = [f"{differences[precision][name][kind][size]:.1e}" for precision in differences for kind, size in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
