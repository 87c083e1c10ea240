"""Kill a run repeatedly with `kill -9`, resume it, and compare the result with an undisturbed run.

    python benchmarks/kill_test.py --output build/kills --kills 50

The command line runs in a child process. The child is killed and resumed (`--resume`) until all kills are used, and
then finishes. There are up to five kills in each stage: rollout, scoring, the updates of fake score, surrogate and
generator, writing a checkpoint, and the evaluation after each iteration. The remaining kills come at random times. Each
child kills itself (`os.kill(os.getpid(), SIGKILL)`). With `--stages outside` new interpreters are killed from outside,
at random times from their start. Weights, optimizers and all lines of metrics, evaluations and
guard must be bit-identical, apart from times. The exit code is 1 if they are not.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from children import after, before, child, load_libraries, without_times

STAGES = ("rollout", "scoring", "fake", "surrogate", "generator", "checkpoint", "evaluation")
AT_RANDOM, OUTSIDE = "random", "outside"
PER_STAGE = 5
SMALL = (
    "batch.groups=2",
    "batch.group_size=2",
    "evaluation.every=1",
    "evaluation.images=2",
    "saving.checkpoint_every=1",
)
SMALL += ("saving.samples_every=0", "saving.tensorboard=false", "threads=1")


def main() -> int:
    """Make both runs and compare them."""
    options = read_options()
    load_libraries()
    found = compare(options)
    print(json.dumps(found))
    return 1 if found["different"] else 0


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line, or of `arguments`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a new folder for both runs")
    parser.add_argument("--kills", type=int, default=50, help="number of kills (default: 50)")
    parser.add_argument(
        "--stages", nargs="+", choices=(*STAGES, AT_RANDOM, OUTSIDE), help="stages of the kills (default: all)"
    )
    parser.add_argument("--iterations", type=int, help="iterations of the run (default: 1.5 per kill, 4 if outside)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run and of the kills")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="another setting of the run")
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Make both runs: kills by stage, their total, names of records that differ, and the hash of the weights."""
    options.output.mkdir(parents=True)
    per_kill = 4 if OUTSIDE in (options.stages or ()) else 1.5
    iterations = options.iterations or max(4, int(per_kill * options.kills))
    settings = (*SMALL, *options.set)
    arguments = [*(part for setting in settings for part in ("--set", setting)), "--seed", str(options.seed)]
    arguments += ["--iterations", str(iterations), "--quiet"]

    undisturbed, log = options.output / "undisturbed", options.output / "undisturbed.log"
    started = time.monotonic()
    code = child(["train", *arguments, "--output", str(undisturbed)], log)
    seconds = (time.monotonic() - started) / iterations
    assert code == 0, f"the undisturbed run ended with exit code {code}: see {log}"
    killed = options.output / "killed"
    kills = _run_with_kills(killed, ["train", *arguments, "--output", str(killed)], options, seconds)

    expected, found = _records(undisturbed), _records(killed)
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return {"kills": kills, "total": sum(kills.values()), "different": different, "bits": found["weights"]}


def _run_with_kills(folder: Path, start: list[str], options: argparse.Namespace, seconds: float) -> dict[str, int]:
    """Run with all kills and then to the end; returns the number of kills in each stage.

    `seconds` is the duration of an iteration.
    """
    rng = random.Random(options.seed)
    stages = options.stages or STAGES
    planned = [stage for stage in stages for _ in range(min(PER_STAGE, options.kills // len(stages)))]
    planned += [AT_RANDOM] * (options.kills - len(planned))
    rng.shuffle(planned)
    kills: collections.Counter[str] = collections.Counter()
    log = options.output / "killed.log"
    for stage in [*planned, None]:
        kill = None if stage is None else (stage, rng.randint(1, 12), rng.uniform(0.1, 2) * seconds)
        arguments = ["train", "--resume", str(folder), "--quiet"]
        if not (folder / "checkpoints" / "latest").exists():  # killed before the first checkpoint
            shutil.rmtree(folder, ignore_errors=True)
            arguments = start
        if kill is not None and kill[0] == OUTSIDE:
            code = _kill_from_outside(arguments, folder, log, *kill[1:])
        else:
            code = child(arguments, log, partial(_install_kill, *kill) if kill else None)
        if code == -signal.SIGKILL and stage is not None:
            kills[stage] += 1
        elif code != 0:
            raise SystemExit(f"exit code {code} with {kill}: see {log}")
        elif stage is not None:
            raise SystemExit(f"the run finished after {sum(kills.values())} kills: set more --iterations")
    return dict(kills)


def _kill_from_outside(arguments: list[str], folder: Path, log: Path, count: int, seconds: float) -> int:
    """Kill a new interpreter while it starts, or some seconds after an iteration; returns its exit code.

    A third of the kills come at the start. `count` selects this, and waits for one or two iterations.
    """
    command = [sys.executable, "-m", "tdmr1_cli", *arguments]
    latest, metrics = folder / "checkpoints" / "latest", folder / "metrics.jsonl"
    begun = int(latest.read_text().strip().rpartition("-")[2]) if latest.exists() else 0
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            while count % 3 and process.poll() is None:
                if metrics.exists() and metrics.read_bytes().count(b"\n") >= begun + count % 3:
                    break
                time.sleep(0.05)
            process.wait(seconds if count % 3 else count)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait()


def _install_kill(stage: str, count: int, seconds: float) -> None:
    """Make this process kill itself at a call in the stage, which `count` selects, or after some seconds."""
    print(f"# this process kills itself: {stage}, count {count}, after {seconds:.2f} s", flush=True)
    from tdmr1_core.runs import run
    from tdmr1_core.runs.evaluation import evaluator
    from tdmr1_core.stages import fake_score, generator, rollout, sampling, scoring, surrogate

    if stage == AT_RANDOM:
        before(run.Run, "_loop", lambda: threading.Timer(seconds, _die).start())
    elif stage == "rollout":  # between two sampling steps
        before(rollout.RolloutStage, "run", lambda: after(sampling, "euler_step", count, _die))
    elif stage == "scoring":  # while rewards are computed, or after all scores are collected
        after(scoring.ScoringStage, "submit" if count % 2 else "collect", 1 + count % 3, _die)
    elif stage == "checkpoint":  # before a flush or a rename
        before(run, "save_checkpoint", lambda: _count_down(os, ("mkdir", "fsync", "rename", "replace"), count))
    elif stage == "evaluation" and count % 2:  # after a prompt set
        after(evaluator, "evaluate", 1 + count % 3, _die)
    elif stage == "evaluation":  # after its rows are written, before those of the guard
        before(evaluator.Evaluator, "read_guard", _die)
    else:  # after the loss, before the gradient
        classes = {"fake": fake_score.FakeScoreStage, "surrogate": surrogate.SurrogateStage}
        after(classes.get(stage, generator.GeneratorStage), "losses", 1 + count % 4, _die)


def _count_down(owner: Any, names: tuple[str, ...], count: int) -> None:
    """Die before the count-th call, counted over all these functions of `owner`."""
    calls = itertools.count(1)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: _die() if next(calls) == count else real(*args, **kwargs)

    for name in names:
        setattr(owner, name, dying(getattr(owner, name)))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _records(folder: Path) -> dict[str, Any]:
    """The records that must be equal: hashes of weights and optimizers, and all lines without times."""
    checkpoints = folder / "checkpoints"
    latest = checkpoints / (checkpoints / "latest").read_text().strip()
    listed = json.loads((latest / "manifest.json").read_text())["files"]
    return {
        "weights": listed["weights.safetensors"]["sha256"],
        "optimizers": listed["optimizers.safetensors"]["sha256"],
        **{name: _rows(folder / f"{name}.jsonl") for name in ("metrics", "evaluations", "guard")},
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    return [without_times(json.loads(line)) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
