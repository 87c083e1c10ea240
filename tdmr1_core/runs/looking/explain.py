"""Explains what the surrogate of a run learned: its implicit reward of each step beside the true reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tdmr1_core.engine import Engine
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.runs.looking.implicit_rewards import StepReward, step_rewards
from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.scoring.runner import RewardRunner, ScoredBatch

Scores = Sequence[float | None]
"""A score for each image of a group; None for an image without one."""


@dataclass(frozen=True)
class ExplainedStep:
    """One of the K steps of a group of G images, counted from 1, which goes from one noise level to the next.

    `implicit` (G,) are the implicit rewards relative to the mean of the group, averaged over the draws, with their
    standard errors `error` (G,), NaN for one draw. `rewards` are the true scores of the images that the step predicts,
    by reward, and `total` is the combined reward. `against_final` and `against_own` are rank correlations (-1 to 1)
    of the implicit rewards with the combined rewards of the final images and of the step's own images.
    """

    number: int
    levels: tuple[float, float]
    view: StepReward
    implicit: np.ndarray
    error: np.ndarray
    rewards: Mapping[str, Scores]
    total: Scores
    against_final: float
    against_own: float


@dataclass(frozen=True)
class Explanation:
    """The steps of a group. The last step predicts the final images.

    `strength` is the factor of the direction in the targets. `iteration` is that of the checkpoint. `unscored` is why
    the first final image without a reward has none; None if all have one or no reward says why.
    """

    prompt: Prompt
    seed: int
    draws: int
    strength: float
    iteration: int
    model: str
    boundary: str
    reference: str
    steps: tuple[ExplainedStep, ...]
    unscored: str | None = None

    @property
    def order(self) -> list[int]:
        """The images from best to worst: by their final combined reward, then by the implicit reward of the last step.

        Images without a reward come last.
        """
        last = self.steps[-1]

        def key(image: int) -> tuple[bool, float, float]:
            score = last.total[image]
            return score is None, -(score or 0.0), -float(last.implicit[image])

        return sorted(range(len(last.total)), key=key)


def explain(
    engine: Engine,
    runner: RewardRunner,
    prompt: Prompt,
    *,
    images: int,
    seed: int = 0,
    draws: int = 8,
    strength: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Explanation:
    """Explain a group of `images` images of a prompt. The result depends only on the arguments.

    Implicit rewards are averaged over `draws` noise levels and noises. Raises Tdmr1Error for a distillation, and if a
    reward fails.
    """
    views = step_rewards(engine, prompt, images=images, seed=seed, draws=draws, strength=strength, progress=progress)
    scored = [_score(engine, runner, prompt, view.images, number, seed) for number, view in enumerate(views)]
    final = scored[-1].total
    sigmas = engine.sigmas.tolist()
    steps = []
    for number, (view, batch) in enumerate(zip(views, scored, strict=True)):
        total = batch.total
        implicit, error = relative_to_group(view.implicit)
        levels = sigmas[number], sigmas[number + 1]
        correlations = rank_correlation(implicit, final), rank_correlation(implicit, total)
        steps.append(ExplainedStep(number + 1, levels, view, implicit, error, batch.per_reward, total, *correlations))
    settings = engine.config.surrogate
    return Explanation(
        prompt,
        seed,
        draws,
        strength,
        engine.iteration_index,
        engine.entry.name,
        settings.boundary,
        settings.reference,
        tuple(steps),
        _reason(scored[-1]),
    )


def relative_to_group(implicit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Implicit rewards (draws, G) minus the mean of the group in each draw: mean and standard error over draws, (G,).

    The implicit reward is known up to a constant of the prompt, so only differences within a group have a meaning. The
    standard error is NaN for one draw.
    """
    centered = implicit - implicit.mean(1, keepdims=True)
    draws = len(centered)
    error = centered.std(0, ddof=1) / np.sqrt(draws) if draws > 1 else np.full(centered.shape[1], np.nan)
    return centered.mean(0), error


def rank_correlation(implicit: np.ndarray, scores: Scores) -> float:
    """Spearman's rank correlation (-1 to 1) over the images with a score; equal values get their mean rank.

    NaN if fewer than three images have a score, or if all values of one side are equal.
    """
    from scipy.stats import rankdata

    known = [image for image, score in enumerate(scores) if score is not None]
    first, second = np.asarray(implicit)[known], np.array([scores[image] for image in known], float)
    if len(known) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _score(
    engine: Engine, runner: RewardRunner, prompt: Prompt, images: np.ndarray, step: int, seed: int
) -> ScoredBatch:
    """The scores of the images of a step. The images are one group."""
    count = len(images)
    batch = RewardBatch(
        images=images,
        prompts=[prompt.text] * count,
        metadata=[prompt.metadata] * count,
        group_ids=[0] * count,
        image_ids=list(range(step * count, (step + 1) * count)),
        context=RewardContext(None, engine.iteration_index, seed),
    )
    return runner.score(batch)


def _reason(scored: ScoredBatch) -> str | None:
    """Why the first image without a combined reward has none, in the words of its reward."""
    without = (detail for detail, total in zip(scored.details, scored.total, strict=True) if total is None)
    reasons = (part.get("reason") for part in next(without, {}).values())
    return next((str(reason) for reason in reasons if reason), None)
