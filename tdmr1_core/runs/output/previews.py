"""Image grids of a run, to look at: the same prompts and noises at every iteration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdmr1_core.durable_files import replace_durable, translate_write_errors
from tdmr1_core.engine import Engine
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.records import Prompt
from tdmr1_core.runs.evaluation.evaluate import EvaluationImages, sample_images
from tdmr1_core.runs.output.image_grids import before_after, grid
from tdmr1_rewards.texts.redaction import redact

SAMPLES, BEFORE_AFTER = "samples", "before_after.png"
PROMPTS, COLUMNS = 6, 8


def preview_file(engine: Engine, folder: Path) -> Path:
    """The file in a run folder for the grid of the current iteration."""
    return folder / SAMPLES / f"step-{engine.iteration_index:06d}.png"


def save_preview(engine: Engine, prompts: Sequence[Prompt], folder: Path) -> None:
    """Write a grid of the averaged generator's images into `samples/` of a run folder."""
    samples = _sample(engine, prompts)
    with translate_write_errors(folder):
        replace_durable(preview_file(engine, folder), grid(samples.images, COLUMNS))


def save_comparison(engine: Engine, prompts: Sequence[Prompt], folder: Path) -> Path:
    """Write a grid that compares the weights at the start of the run with the averaged weights at its end."""
    after = _sample(engine, prompts)
    final_weights = engine.roles.weights(GENERATOR_EMA)
    engine.roles.load(GENERATOR_EMA, engine.start, "the start of the run")
    before = _sample(engine, prompts)
    engine.roles.load(GENERATOR_EMA, final_weights, "the end of the run")
    captions = [redact(prompt.text) for prompt in after.prompts[::COLUMNS]]
    shape = (len(captions), COLUMNS, *after.images.shape[1:])
    path = folder / BEFORE_AFTER
    titles = ("before", f"after {engine.iteration_index} iterations")
    with translate_write_errors(folder):
        sheet = before_after(before.images.reshape(shape), after.images.reshape(shape), captions, titles)
        replace_durable(path, sheet)
    return path


def shown(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts of a grid, spread over these prompts."""
    return prompts[:: max(1, len(prompts) // PROMPTS)][:PROMPTS]


def _sample(engine: Engine, prompts: Sequence[Prompt]) -> EvaluationImages:
    return sample_images(engine, GENERATOR_EMA, shown(prompts), COLUMNS, engine.config.evaluation.seed)
