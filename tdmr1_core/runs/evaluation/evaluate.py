"""Evaluations: any role on fixed prompts and noises, judged by the rewards, with n and a standard error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.engine import Engine
from tdmr1_core.models.roles import TEACHER
from tdmr1_core.prompts.sets import spread
from tdmr1_core.records import Prompt
from tdmr1_core.runs.jsonl import number, whole_number
from tdmr1_core.stages.micro_batches import MicroBatches
from tdmr1_core.stages.sampling import Sampler, sample
from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.scoring.runner import RewardRunner

SAMPLING_BATCH = 96
"""Images sampled at once where the run sets no micro-batch."""


@dataclass(frozen=True)
class EvaluationImages:
    """Sampled images uint8 (N, height, width, 3), and the prompt of each; equal seeds give equal noises."""

    images: np.ndarray
    prompts: tuple[Prompt, ...]
    group_ids: tuple[int, ...]


@dataclass(frozen=True)
class Measure:
    """One reward over N judged images: mean and its standard error, taking the images as independent."""

    mean: float
    stderr: float
    n: int

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str, n: Any) -> Measure:
        """The measure that a line tells of. Raises one of `storage.MALFORMED` for a line of something else."""
        return cls(number(row[f"{name}/mean"]), number(row[f"{name}/stderr"]), whole_number(n))


@dataclass(frozen=True)
class Evaluation:
    """What one role got on one prompt set: a measure for each reward, and the images themselves."""

    role: str
    prompt_set: str
    measures: dict[str, Measure]
    pictures: EvaluationImages
    scores: dict[str, list[float | None]]

    def rows(self) -> list[dict[str, str | int | float]]:
        """As lines of evaluations.jsonl, one a reward, but for the step."""
        return [
            {
                "role": self.role,
                "prompts": self.prompt_set,
                "n": value.n,
                f"{reward}/mean": value.mean,
                f"{reward}/stderr": value.stderr,
            }
            for reward, value in self.measures.items()
        ]


@torch.no_grad()
def draw(
    engine: Engine,
    role: str,
    prompts: Sequence[Prompt],
    per_prompt: int,
    seed: int,
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: Sampler | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvaluationImages:
    """`per_prompt` images of every prompt from noises that depend on seed and prompt alone.

    The teacher samples its own number of steps at its own guidance unless told otherwise; every other role K steps
    without guidance and with the sampler of training. `progress` is told how many images are drawn of how many.
    """
    teacher = role == TEACHER
    steps = steps or (engine.entry.teacher_steps if teacher else engine.steps)
    if guidance_scale is None:
        guidance_scale = engine.entry.teacher_guidance if teacher else 1.0
    backbone = engine.roles.backbone
    sigmas = backbone.schedule(steps, engine.shift)
    noise = evaluation_noise(prompts, per_prompt, seed, backbone.latent_shape(*engine.size))
    conditioning = engine.conditioning(prompts)
    images: list[np.ndarray] = []
    progress(0, len(noise))

    def draw_rows(rows: Tensor) -> None:
        with engine.roles.acting(role) as acting:
            latents = sample(
                acting,
                noise[rows].to(device=backbone.device, dtype=backbone.dtype),
                conditioning.select(rows // per_prompt),
                sigmas,
                sampler=sampler or ("euler" if teacher else engine.config.rollout.sampler),
                guidance_scale=guidance_scale,
            )
        images.append(backbone.decode(latents[-1]))
        progress(int(rows[-1]) + 1, len(noise))

    micro_batches = MicroBatches(engine.config.batch.micro_batch)
    micro_batches.size = micro_batches.size or SAMPLING_BATCH
    micro_batches.each(len(noise), draw_rows)
    of_image = [prompt for prompt in prompts for _ in range(per_prompt)]
    group_ids = [group for group in range(len(prompts)) for _ in range(per_prompt)]
    return EvaluationImages(np.concatenate(images), tuple(of_image), tuple(group_ids))


def evaluation_noise(prompts: Sequence[Prompt], per_prompt: int, seed: int, shape: tuple[int, int, int]) -> Tensor:
    """Starting noise float32 (prompts x per_prompt, C, H, W), prompt by prompt; a repeated prompt gets further ones."""
    drawn, parts = Counter[str](), []
    for prompt in prompts:
        numbers = range(drawn[prompt.text], drawn[prompt.text] + per_prompt)
        parts.append(seeds.noise(seed, f"evaluation/{prompt.text}", (), numbers, shape))
        drawn[prompt.text] += per_prompt
    return torch.cat(parts)


def evaluate(
    engine: Engine,
    runner: RewardRunner,
    role: str,
    prompt_set: str,
    prompts: Sequence[Prompt],
    *,
    images: int,
    seed: int,
    steps: int | None = None,
    guidance_scale: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Sample about `images` images of a role, `spread` over the prompts, and judge them with every reward."""
    prompts, per_prompt = spread(prompts, images)
    pictures = draw(
        engine, role, prompts, per_prompt, seed, steps=steps, guidance_scale=guidance_scale, progress=progress
    )
    scored = runner.score(
        RewardBatch(
            images=pictures.images,
            prompts=[prompt.text for prompt in pictures.prompts],
            metadata=[prompt.metadata for prompt in pictures.prompts],
            group_ids=pictures.group_ids,
            image_ids=list(range(len(pictures.images))),
            context=RewardContext(None, engine.iteration_index, seed),
        )
    )
    measures = {name: measure(scores) for name, scores in scored.per_reward.items()}
    return Evaluation(role, prompt_set, measures, pictures, scored.per_reward)


def measure(scores: Sequence[float | None]) -> Measure:
    """Mean, standard error and number of the scores that were given; nan where there are too few."""
    given = np.array([score for score in scores if score is not None])
    mean = float(given.mean()) if len(given) else float("nan")
    stderr = float(given.std(ddof=1) / np.sqrt(len(given))) if len(given) > 1 else float("nan")
    return Measure(mean, stderr, len(given))
