"""Evaluation of a role: images from fixed prompts and noises, scored by rewards; mean, standard error and n."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.build.parts import kind_of_levels
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
"""The micro-batch for sampling if the run sets none, in images."""


@dataclass(frozen=True)
class EvaluationImages:
    """N sampled images: uint8 (N, height, width, 3), the prompt of each, and the position of that prompt."""

    images: np.ndarray
    prompts: tuple[Prompt, ...]
    group_ids: tuple[int, ...]


@dataclass(frozen=True)
class Measure:
    """A reward over n scored images: its mean, and the standard error if the images are independent."""

    mean: float
    stderr: float
    n: int

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str, n: Any) -> Measure:
        """Read a measure from a line of a log file. Raises one of `durable_files.MALFORMED` for a malformed line."""
        return cls(number(row[f"{name}/mean"]), number(row[f"{name}/stderr"]), whole_number(n))


@dataclass(frozen=True)
class Evaluation:
    """The result of one role on one prompt set: the scores of N images by reward, and a measure for each reward.

    `prompts` has the prompt of each image, and `samples` the images that this process sampled.
    """

    role: str
    prompt_set: str
    measures: dict[str, Measure]
    samples: EvaluationImages
    scores: dict[str, list[float | None]]
    prompts: tuple[Prompt, ...] = ()

    def rows(self) -> list[dict[str, str | int | float]]:
        """The lines of evaluations.jsonl, one per reward, without the key `step`."""
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

    def score_row(self, seed: int) -> dict[str, Any]:
        """The line of image_scores.jsonl, without the key `step`. `seed` is that of the noise.

        `images` has [key of the prompt, number of images] in the order of the scores.
        """
        keys = [prompt_key(prompt) for prompt in self.prompts]
        images = [[key, len(list(same))] for key, same in groupby(keys)]
        return {
            "role": self.role,
            "prompts": self.prompt_set,
            "seed": seed,
            "images": images,
            "scores": self.scores,
        }


def prompt_key(prompt: Prompt) -> str:
    """A key for the text and metadata of a prompt: 12 hex digits."""
    content = json.dumps([prompt.text, prompt.metadata], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()


def _levels(engine: Engine, role: str, steps: int) -> Tensor:
    """The noise levels (K+1,) of a role: those of training, or those of the schedule for another number of steps.

    The teacher has those of Euler. If the scheduler of its pipeline depends on the image size, they are its own.
    """
    backbone = engine.roles.backbone_of(role)
    if role == TEACHER:
        own = backbone.has_static_levels is False
        return backbone.schedule(steps, backbone.noise_schedule(engine.size, steps) if own else engine.shift)
    if steps == engine.steps:
        return engine.sigmas
    return backbone.schedule(steps, engine.noise_schedule(steps), kind_of_levels(engine.config.rollout))


@torch.no_grad()
def sample_images(
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
    part: slice = slice(None),
) -> EvaluationImages:
    """Sample `per_prompt` images of every prompt in `part`; the noises depend only on the seed and the prompt.

    By default, the teacher uses the steps and guidance scale of the model entry and Euler steps; every other role uses
    K steps, no guidance and the sampler of training. `progress` is called with the number of finished images and the
    total.
    """
    first, last, _ = part.indices(len(prompts))
    if first == last:
        return EvaluationImages(np.zeros((0, *engine.size, 3), np.uint8), (), ())
    is_teacher = role == TEACHER
    steps = steps or (engine.entry.teacher_steps if is_teacher else engine.steps)
    if guidance_scale is None:
        guidance_scale = engine.entry.teacher_guidance if is_teacher else 1.0
    backbone = engine.roles.backbone
    rollout = engine.config.rollout
    sigmas = _levels(engine, role, steps)
    noise = evaluation_noise(prompts, per_prompt, seed, backbone.latent_shape(*engine.size))
    noise = noise[first * per_prompt : last * per_prompt]  # (N, C, H, W)
    conditioning = engine.conditioning(prompts[part])
    images: list[np.ndarray] = []
    progress(0, len(noise))

    def sample_rows(rows: Tensor) -> None:
        with engine.roles.acting(role) as acting:
            latents = sample(
                acting,
                noise[rows].to(device=backbone.device, dtype=backbone.dtype),
                conditioning.select(rows // per_prompt),
                sigmas,
                sampler=sampler or ("euler" if is_teacher else rollout.sampler),
                guidance_scale=guidance_scale,
            )
        images.append(backbone.decode(latents[-1]))
        progress(int(rows[-1]) + 1, len(noise))

    micro_batches = MicroBatches(engine.config.batch.micro_batch, halves=not engine.is_sharded)
    micro_batches.current = micro_batches.size or SAMPLING_BATCH
    micro_batches.each(len(noise), sample_rows)
    group_ids = tuple(group for group in range(first, last) for _ in range(per_prompt))
    return EvaluationImages(np.concatenate(images), tuple(prompts[group] for group in group_ids), group_ids)


def evaluation_noise(prompts: Sequence[Prompt], per_prompt: int, seed: int, shape: tuple[int, int, int]) -> Tensor:
    """Initial noise, float32 (prompts * per_prompt, C, H, W), in the order of the prompts.

    A prompt that occurs again gets further noises of the same stream.
    """
    used, parts = Counter[str](), []
    for prompt in prompts:
        numbers = range(used[prompt.text], used[prompt.text] + per_prompt)
        parts.append(seeds.noise(seed, f"evaluation/{prompt.text}", (), numbers, shape))
        used[prompt.text] += per_prompt
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
    images_per_prompt: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Sample about `images` images of a role, spread evenly over the prompts, and score them with every reward.

    With several processes, each samples and scores its part of the prompts. All of them call this together.
    """
    prompts, per_prompt = spread(prompts, images, images_per_prompt)
    processes = engine.processes
    part = processes.part(len(prompts))

    def sample_and_score() -> tuple[EvaluationImages, dict[str, list[float | None]]]:
        samples = sample_images(
            engine,
            role,
            prompts,
            per_prompt,
            seed,
            steps=steps,
            guidance_scale=guidance_scale,
            progress=progress,
            part=part,
        )
        return samples, score_images(engine, runner, samples, part.start * per_prompt, seed)

    samples, scores = processes.on_each(sample_and_score)
    scores = processes.join(scores)
    measures = {name: measure(values) for name, values in scores.items()}
    of_image = tuple(prompt for prompt in prompts for _ in range(per_prompt))
    return Evaluation(role, prompt_set, measures, samples, scores, of_image)


def score_images(
    engine: Engine, runner: RewardRunner, samples: EvaluationImages, first: int, seed: int
) -> dict[str, list[float | None]]:
    """The scores of every reward; the images have the numbers from `first` on. Empty if there are no images."""
    if not samples.prompts:
        return {}
    scored = runner.score(
        RewardBatch(
            images=samples.images,
            prompts=[prompt.text for prompt in samples.prompts],
            metadata=[prompt.metadata for prompt in samples.prompts],
            group_ids=samples.group_ids,
            image_ids=list(range(first, first + len(samples.images))),
            context=RewardContext(None, engine.iteration_index, seed),
        )
    )
    return scored.per_reward


def measure(scores: Sequence[float | None]) -> Measure:
    """Mean, standard error and number of the scores that are not None; NaN if there are too few of them."""
    values = np.array([score for score in scores if score is not None])
    mean = float(values.mean()) if len(values) else float("nan")
    stderr = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Measure(mean, stderr, len(values))


def paired_gain(after: Evaluation, before: Evaluation, reward: str) -> Measure:
    """Mean, standard error and number of the differences of a reward, image by image on the same noise."""
    pairs = zip(after.scores[reward], before.scores[reward], strict=True)
    return measure([None if now is None or then is None else now - then for now, then in pairs])
