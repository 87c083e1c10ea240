"""How far the embedded model follows a person who likes red, in each mode of the reward `human`.

    python benchmarks/human_learning.py train  --output build/human --seeds 0 1 2
    python benchmarks/human_learning.py report --output build/human

A scripted person answers through the store of the page, as the page does (tests/browser: through a real browser).
Prompts name no colour. The conditions: `wait` (every picture of 30 iterations is judged: 720 answers), `model`
(200 answers to pictures of the untrained model, none later), `mixed` (the same 200, and a quarter of every group),
`stored` (a second run that finds the answers of `wait`), and two controls: `nobody` (no answer at all) and `chance` (a
coin answers). `train` measures every run when it ends: the share of red pictures over 480 pairs of caption and noise,
before and after. Every step continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from intervals import across_seeds, paired_gain
from scripted_person import ScriptedPerson, is_red

from tdmr1_core.config_loading import read_preset, resolve
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.prompts.sets import load_prompts
from tdmr1_core.runs.evaluation.evaluate import EvaluationImages, sample_images
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.run import Run
from tdmr1_rewards.feedback.records import NewItem
from tdmr1_rewards.feedback.store import FeedbackStore

CONDITIONS = ("wait", "model", "mixed", "stored", "nobody", "chance")
PER_CAPTION = 40
EVALUATION_SEED, LABELLED_SEED = 77_000_077, 55_000_055
ANSWERS = 200
PROMPTS = "scenes"


class Watcher:
    """Watches a run and says nothing but what went wrong."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


def options_of(condition: str, root: Path, seed: int) -> dict[str, Any]:
    """The reward's options in a condition."""
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
    """Label if need be, train with somebody at the page, and measure."""
    folder, target = root / f"{condition}-{seed}", root / f"{condition}-{seed}.json"
    if target.exists():
        return
    if condition in ("model", "mixed") and not (root / f"labelled-{seed}").exists():
        label(root, seed)
    reward = {"name": "human", "options": options_of(condition, root, seed)}
    config = resolve([read_preset("tiny-human"), {"seed": seed, "iterations": iterations, "rewards": [reward]}])
    asked = condition in ("wait", "mixed", "chance")
    person = ScriptedPerson(folder / "feedback", chance=condition == "chance") if asked else nullcontext()
    run = Run.create(config, folder)
    with person:
        run.execute(Watcher())
    with pictures_of(folder) as (before, after):
        measures = {
            "prompts": list(before.group_ids),
            "before": [is_red(image) for image in before.images],
            "after": [is_red(image) for image in after.images],
            "answers": person.given if isinstance(person, ScriptedPerson) else 0,
        }
    target.write_text(json.dumps(measures))
    print(f"{condition}, seed {seed}: {np.mean(measures['before']):.3f} → {np.mean(measures['after']):.3f}", flush=True)


def label(root: Path, seed: int) -> None:
    """Have the person judge pictures of the untrained model."""
    from tdmr1_core.engine import Engine

    engine = Engine.from_config(resolve([read_preset("tiny"), {"rewards": [{"name": "jpeg_size"}]}]))
    prompts = load_prompts(PROMPTS, "tiny")
    pictures = sample_images(engine, GENERATOR_EMA, prompts, -(-ANSWERS // len(prompts)), LABELLED_SEED + seed)
    engine.close()
    drawn = zip(pictures.images, pictures.prompts, strict=True)
    items = [NewItem(image, prompt.text) for image, prompt in drawn][:ANSWERS]
    store = FeedbackStore(root / f"labelled-{seed}" / "feedback")
    store.open_round("untrained", [items], run="", step=None)
    with ScriptedPerson(store.folder, ANSWERS) as person:
        person.join()
    store.close()


@contextmanager
def pictures_of(folder: Path) -> Iterator[tuple[EvaluationImages, EvaluationImages]]:
    """The same captions and noises drawn by the model the run began with, and by its final averaged generator."""
    engine = load_trained(folder)
    prompts = load_prompts(PROMPTS, "tiny")
    after = sample_images(engine, GENERATOR_EMA, prompts, PER_CAPTION, EVALUATION_SEED)
    engine.roles.load(GENERATOR_EMA, engine.start, "the start of the run")
    yield sample_images(engine, GENERATOR_EMA, prompts, PER_CAPTION, EVALUATION_SEED), after
    engine.close()


def report(root: Path) -> None:
    """A table of every run, and of every condition over its seeds."""
    print("| mode | seed | answers in the run | red before | red after | gain (95 % interval) |")
    print("|---|---|---|---|---|---|")
    for condition in CONDITIONS:
        gains = []
        for path in sorted(root.glob(f"{condition}-*.json")):
            seen = json.loads(path.read_text())
            gain = paired_gain(*(np.array(seen[key], float) for key in ("before", "after")), np.array(seen["prompts"]))
            gains.append(gain)
            print(
                f"| {condition} | {path.stem.rpartition('-')[2]} | {seen['answers']} | {gain.before:.1%} | "
                f"{gain.after:.1%} | {100 * gain.gain:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) |"
            )
        if len(gains) > 1:
            over = across_seeds(gains)
            print(f"| {condition} | mean of {over.n} | | | | {100 * over.mean:+.1f} |")


def main() -> None:
    """Choose the step."""
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
