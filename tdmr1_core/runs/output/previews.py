"""Image grids of a run, to look at: the same prompts and noises at every iteration, with the scores of each image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tdmr1_core import heartbeat
from tdmr1_core.durable_files import replace_durable, translate_write_errors
from tdmr1_core.engine import Engine
from tdmr1_core.errors import warn
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.records import Prompt
from tdmr1_core.runs.evaluation.evaluate import EvaluationImages, sample_images, score_images
from tdmr1_core.runs.output.image_grids import before_after, grid
from tdmr1_rewards.calling.interrupts import Interrupted
from tdmr1_rewards.scoring.failures import RewardFailed
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.texts.redaction import redact, redact_texts

SAMPLES, BEFORE_AFTER = "samples", "before_after.png"
PROMPTS, COLUMNS = 6, 8


def preview_file(engine: Engine, folder: Path) -> Path:
    """The file in a run folder for the grid of the current iteration."""
    return folder / SAMPLES / f"step-{engine.iteration_index:06d}.png"


def save_preview(engine: Engine, prompts: Sequence[Prompt], folder: Path, runner: RewardRunner | None = None) -> None:
    """Write a grid of the averaged generator's images into `samples/` of a run folder, and a JSON file beside it.

    The JSON file has the prompt of each row and, with a `runner`, the scores of each image by each of its rewards. The
    rewards keep no memory of it. If one fails, there are no scores, and a warning names the reason.
    """
    samples = _sample(engine, prompts)
    scores = _scores(engine, samples, runner)
    file = preview_file(engine, folder)
    with translate_write_errors(folder):
        replace_durable(file.with_suffix(".json"), _description(engine.iteration_index, samples, scores))
        replace_durable(file, grid(samples.images, COLUMNS))


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


def _scores(engine: Engine, samples: EvaluationImages, runner: RewardRunner | None) -> dict[str, list[float | None]]:
    """The scores of the images of a grid by reward; empty without rewards, and if one fails or is interrupted."""
    if runner is None:
        return {}
    try:
        with heartbeat.stage("evaluation", limited=False), runner.preserving_states():
            return score_images(engine, runner, samples, 0, engine.config.evaluation.seed)
    except Interrupted:
        return {}
    except RewardFailed as error:
        step = engine.iteration_index
        warn(f"the image grid of iteration {step} has no scores: {error.message}", code="images-unscored", step=step)
        return {}


def _description(step: int, samples: EvaluationImages, scores: Mapping[str, list[float | None]]) -> bytes:
    """The JSON file of a grid: iteration, columns, height and width of an image, prompts of the rows, and scores."""
    height, width = samples.images.shape[1:3]
    document = {
        "step": step,
        "columns": COLUMNS,
        "height": height,
        "width": width,
        "prompts": [prompt.text for prompt in samples.prompts[::COLUMNS]],
        "scores": scores,
    }
    return json.dumps(redact_texts(document)).encode()
