"""Train the embedded model with a scripted person who likes red, in each mode of the reward `human`.

    python benchmarks/human_learning.py train  --output build/human --seeds 0 1 2
    python benchmarks/human_learning.py report --output build/human

The scripted person uses the database of the page, as the page does (tests/browser uses a real browser). The prompts
name no color. The conditions:

- `wait`: all images of 30 iterations are judged (720 answers)
- `model`: 200 answers to images of the untrained model, none during the run
- `mixed`: the same 200 answers, and answers to a quarter of every group during the run
- `stored`: a second run that uses the answers of `wait`
- `nobody` (control): no answers
- `chance` (control): random answers

`train` measures every run at its end: the fraction of red images over 480 pairs of caption and noise, before and after.
It skips the runs that are already measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from intervals import across_seeds
from scripted_person import ScriptedPerson, is_red

from tdmr1_core.config_loading import read_preset, resolve
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.prompts.sets import load_prompts
from tdmr1_core.runs.evaluation.evaluate import EvaluationImages, sample_images
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.looking.intervals import paired_gain
from tdmr1_core.runs.observer import Observer
from tdmr1_core.runs.run import Run
from tdmr1_rewards.feedback.records import NewItem
from tdmr1_rewards.feedback.store import FeedbackStore

CONDITIONS = ("wait", "model", "mixed", "stored", "nobody", "chance")
PER_CAPTION = 40
EVALUATION_SEED, LABELLED_SEED = 77_000_077, 55_000_055
ANSWERS = 200
PROMPTS = "scenes"


def options_of(condition: str, root: Path, seed: int) -> dict[str, Any]:
    """The options of the reward in a condition."""
    labelled = [str(root / f"labelled-{seed}")]
    return {
        "wait": {"mode": "wait"},
        "model": {"mode": "model", "show": 0, "answers": labelled},
        "mixed": {"mode": "mixed", "people_share": 0.25, "answers": labelled},
        "stored": {"mode": "stored", "answers": [str(root / f"wait-{seed}")]},
        "nobody": {"mode": "model", "show": 0},
        "chance": {"mode": "wait"},
    }[condition]


def train(root: Path, seed: int, condition: str, iterations: int) -> None:
    """Collect answers if the condition needs them, train with the scripted person, and measure."""
    folder, target = root / f"{condition}-{seed}", root / f"{condition}-{seed}.json"
    if target.exists():
        return
    if condition in ("model", "mixed") and not (root / f"labelled-{seed}").exists():
        label(root, seed)
    reward = {"name": "human", "options": options_of(condition, root, seed)}
    config = resolve([read_preset("tiny-human"), {"seed": seed, "iterations": iterations, "rewards": [reward]}])
    judged = condition in ("wait", "mixed", "chance")
    person = ScriptedPerson(folder / "feedback", chance=condition == "chance") if judged else nullcontext()
    run = Run.create(config, folder)
    with person:
        run.execute(Observer())
    with images_of(folder) as (before, after):
        measures = {
            "prompts": list(before.group_ids),
            "before": [is_red(image) for image in before.images],
            "after": [is_red(image) for image in after.images],
            "answers": person.answers if isinstance(person, ScriptedPerson) else 0,
        }
    target.write_text(json.dumps(measures))
    print(f"{condition}, seed {seed}: {np.mean(measures['before']):.3f} → {np.mean(measures['after']):.3f}", flush=True)


def label(root: Path, seed: int) -> None:
    """Collect answers of the scripted person to images of the untrained model."""
    from tdmr1_core.engine import Engine

    engine = Engine.from_config(resolve([read_preset("tiny"), {"rewards": [{"name": "jpeg_size"}]}]))
    prompts = load_prompts(PROMPTS, "tiny")
    samples = sample_images(engine, GENERATOR_EMA, prompts, -(-ANSWERS // len(prompts)), LABELLED_SEED + seed)
    engine.close()
    pairs = zip(samples.images, samples.prompts, strict=True)
    items = [NewItem(image, prompt.text) for image, prompt in pairs][:ANSWERS]
    store = FeedbackStore(root / f"labelled-{seed}" / "feedback")
    store.open_round("untrained", [items], run="", step=None)
    with ScriptedPerson(store.folder, ANSWERS) as person:
        person.join()
    store.close()


@contextmanager
def images_of(folder: Path) -> Iterator[tuple[EvaluationImages, EvaluationImages]]:
    """Images from the model at the start of the run and from its final averaged generator, with the same noises."""
    engine = load_trained(folder)
    prompts = load_prompts(PROMPTS, "tiny")
    after = sample_images(engine, GENERATOR_EMA, prompts, PER_CAPTION, EVALUATION_SEED)
    engine.roles.load(GENERATOR_EMA, engine.start, "the start of the run")
    yield sample_images(engine, GENERATOR_EMA, prompts, PER_CAPTION, EVALUATION_SEED), after
    engine.close()


def report(root: Path) -> None:
    """Print a table with all runs, and the mean gain of each condition."""
    print("| mode | seed | answers in the run | red before | red after | gain (95 % interval) |")
    print("|---|---|---|---|---|---|")
    for condition in CONDITIONS:
        gains = []
        for path in sorted(root.glob(f"{condition}-*.json")):
            found = json.loads(path.read_text())
            before, after = (np.array(found[key], float) for key in ("before", "after"))
            gain = paired_gain(before, after, np.array(found["prompts"]))
            gains.append(gain)
            print(
                f"| {condition} | {path.stem.rpartition('-')[2]} | {found['answers']} | {gain.before:.1%} | "
                f"{gain.after:.1%} | {100 * gain.gain:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) |"
            )
        if len(gains) > 1:
            over = across_seeds(gains)
            print(f"| {condition} | mean of {over.n} | | | | {100 * over.mean:+.1f} |")


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "report"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--iterations", type=int, default=30)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.step == "report":
        report(options.output)
        return
    for seed in options.seeds:
        for condition in options.conditions:
            train(options.output, seed, condition, options.iterations)


if __name__ == "__main__":
    main()
