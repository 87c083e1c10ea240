"""Kills one run again and again with `kill -9`, and compares what it ends with with a run that nobody disturbed.

    python benchmarks/kill_test.py --output build/kills --kills 50

The real command line runs in a child process, which is killed and continued with `--resume` until all kills are spent,
and then ends. The kills at a barrier are the child's own (`os.kill(os.getpid(), SIGKILL)`) in the middle of a rollout,
scoring, the fake, surrogate and generator update, in every stage of writing a checkpoint, and in the evaluation that
follows each iteration, five of each if there are so many; the rest come from outside at a random time. Weights,
optimisers and every line of metrics, evaluations and the guard must be the same to the last bit. Exit code 1 if they
are not.
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
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import after, before, child, load_libraries, timeless

BARRIERS = ("rollout", "scoring", "fake", "surrogate", "generator", "checkpoint", "evaluation")
AT_RANDOM = "random"
PER_BARRIER = 5
SMALL = (
    "batch.groups=2",
    "batch.group_size=4",
    "evaluation.every=1",
    "evaluation.images=4",
    "saving.checkpoint_every=1",
)
SMALL += ("saving.samples_every=0", "saving.tensorboard=false", "threads=1")


def main() -> int:
    """Run undisturbed, run killed, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a folder for both runs; it must be new")
    parser.add_argument("--kills", type=int, default=50, help="how often to kill (default: 50)")
    parser.add_argument("--iterations", type=int, help="length of the run (default: 1.5 a kill)")
    parser.add_argument("--seed", type=int, default=0, help="of the run, and of when it is killed")
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    iterations = options.iterations or max(4, 3 * options.kills // 2)
    load_libraries()
    arguments = [*(part for setting in SMALL for part in ("--set", setting)), "--seed", str(options.seed)]
    arguments += ["--iterations", str(iterations), "--quiet"]

    whole = options.output / "whole"
    began = time.monotonic()
    code = child(["train", *arguments, "--output", str(whole)], options.output / "whole.log")
    usual = time.monotonic() - began
    assert code == 0, f"the undisturbed run ended with exit code {code}: see {options.output / 'whole.log'}"
    killed = options.output / "killed"
    spent = _kill(killed, ["train", *arguments, "--output", str(killed)], options, usual / iterations)

    one, other = _bits(whole), _bits(killed)
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(json.dumps({"kills": spent, "total": sum(spent.values()), "different": different, "bits": other["weights"]}))
    return 1 if different else 0


def _kill(folder: Path, start: list[str], options: argparse.Namespace, pace: float) -> dict[str, int]:
    """Run to the end through all kills; how many of each kind there were."""
    dice = random.Random(options.seed)
    wanted = [kind for kind in BARRIERS for _ in range(min(PER_BARRIER, options.kills // len(BARRIERS)))]
    wanted += [AT_RANDOM] * (options.kills - len(wanted))
    dice.shuffle(wanted)
    spent: collections.Counter[str] = collections.Counter()
    log = options.output / "killed.log"
    for kind in [*wanted, None]:
        barrier = None if kind is None else (kind, dice.randint(1, 12), dice.uniform(0.1, 2) * pace)
        arguments = ["train", "--resume", str(folder), "--quiet"]
        if not (folder / "checkpoints" / "latest").exists():  # killed before there was anything to go on from
            shutil.rmtree(folder, ignore_errors=True)
            arguments = start
        code = child(arguments, log, _end(barrier))
        if code == -signal.SIGKILL and kind is not None:
            spent[kind] += 1
        elif code != 0:
            raise SystemExit(f"exit code {code} with {barrier}: see {log}")
        elif kind is not None:
            raise SystemExit(f"the run was over after {sum(spent.values())} kills: it needs more --iterations")
    return dict(spent)


def _end(barrier: tuple[str, int, float] | None) -> Callable[[], None] | None:
    """What arranges a child's end, in the child."""
    if barrier is None:
        return None

    def install() -> None:
        print(f"# to be killed: {barrier}", flush=True)
        _install(*barrier)

    return install


def _install(kind: str, count: int, seconds: float) -> None:
    """Arrange this process's end: at the count-th call of something, or some seconds after iterations began."""
    from tdmr1_core.runs import run
    from tdmr1_core.stages import fake_score, generator, rollout, sampling, scoring, surrogate

    if kind == AT_RANDOM:
        before(run.Run, "_loop", lambda: threading.Timer(seconds, _die).start())
    elif kind == "rollout":  # between two of its steps
        before(rollout.RolloutStage, "run", lambda: after(sampling, "euler_step", count, _die))
    elif kind == "scoring":  # while rewards are at work, or when they have answered
        after(scoring.ScoringStage, "submit" if count % 2 else "collect", 1 + count % 3, _die)
    elif kind == "checkpoint":  # before one of its flushes and renames
        before(run, "save_checkpoint", lambda: _count_down(os, ("mkdir", "fsync", "rename", "replace"), count))
    elif kind == "evaluation":  # between or after its prompt sets, or when its rows are there and the guard's are not
        after(run, "evaluate", 1 + count % 3, _die) if count % 2 else before(run.Run, "_watch", _die)
    else:  # when its loss is there and its gradient is not
        stage = {"fake": fake_score.FakeScoreStage, "surrogate": surrogate.SurrogateStage}
        after(stage.get(kind, generator.GeneratorStage), "losses", 1 + count % 4, _die)


def _count_down(owner: Any, names: tuple[str, ...], count: int) -> None:
    """Die before the count-th call of any of the functions."""
    calls = itertools.count(1)

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given, **named: _die() if next(calls) == count else real(*given, **named)

    for name in names:
        setattr(owner, name, dying(getattr(owner, name)))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _bits(folder: Path) -> dict[str, Any]:
    """What must be the same: hashes of weights and optimisers, and all lines but for the clock's numbers."""
    checkpoints = folder / "checkpoints"
    latest = checkpoints / (checkpoints / "latest").read_text().strip()
    listed = json.loads((latest / "manifest.json").read_text())["files"]
    return {
        "weights": listed["weights.safetensors"]["sha256"],
        "optimizers": listed["optimizers.safetensors"]["sha256"],
        **{name: _rows(folder / f"{name}.jsonl") for name in ("metrics", "evaluations", "guard")},
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
