"""The implicit reward of each step of a group, and the direction in which the surrogate moves the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import predict_clean
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.records import Groups, Trajectory
from tdmr1_core.runs.evaluation.evaluate import SAMPLING_BATCH, evaluation_noise
from tdmr1_core.stages.draws import draw_levels
from tdmr1_core.stages.micro_batches import MicroBatches
from tdmr1_core.stages.sampling import sample
from tdmr1_core.stages.surrogate import SurrogateStage, SurrogateView


@dataclass(frozen=True)
class StepReward:
    """What the surrogate says about the G images of a group after one step.

    `implicit` (draws, G) are the implicit rewards for each draw of noise level and noise. `direction` (G, h, w) is the
    length over the channels of the mean direction, in latent units. `images` and `targets` are uint8 (G, height, width,
    3): the clean images that the step predicts, and the same moved along the direction.
    """

    implicit: np.ndarray
    direction: np.ndarray
    images: np.ndarray
    targets: np.ndarray


@torch.no_grad()
def step_rewards(
    engine: Engine,
    prompt: Prompt,
    *,
    images: int,
    seed: int,
    draws: int,
    strength: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[StepReward]:
    """Sample a group with the averaged generator, and ask the surrogate about the result of each of its K steps.

    The images are those of `tdmr1 sample` with this seed. The target of an image is its clean latent plus `strength`
    times the mean direction. `progress` is called with the number of finished steps, and K. Raises Tdmr1Error for an
    engine of a distillation.
    """
    stage = engine.surrogate
    if stage is None:
        raise no_surrogate()
    stage = replace(stage, seed=seed)
    trajectory, cleans = _sample(engine, prompt, images, seed)
    found = []
    progress(0, engine.steps)
    for step in range(engine.steps):
        implicit, direction = _ask(engine, stage, trajectory, step, draws)
        found.append(
            StepReward(
                implicit,
                direction.norm(dim=1).double().cpu().numpy(),
                _decode(engine, cleans[step]),
                _decode(engine, cleans[step] + strength * direction),
            )
        )
        progress(step + 1, engine.steps)
    return found


def no_surrogate() -> Tdmr1Error:
    """The error for a distillation."""
    return Tdmr1Error(
        "a distillation has no surrogate reward, so there is nothing to explain",
        "name the folder of a training run",
        code="distillation-no-rewards",
    )


def _sample(engine: Engine, prompt: Prompt, images: int, seed: int) -> tuple[Trajectory, Tensor]:
    """The trajectory of a group, and the clean latents that each step predicts, (K, G, C, H, W)."""
    backbone, sigmas = engine.roles.backbone, engine.sigmas
    noise = evaluation_noise([prompt], images, seed, backbone.latent_shape(*engine.size))
    conditioning = engine.conditioning([prompt])
    paths: list[Tensor] = []
    cleans: list[Tensor] = []

    def sample_rows(rows: Tensor) -> None:
        start = noise[rows].to(device=backbone.device, dtype=backbone.dtype)
        prompts = conditioning.select(torch.zeros_like(rows))
        with engine.roles.acting(GENERATOR_EMA) as acting:
            path = sample(acting, start, prompts, sigmas, sampler=engine.config.rollout.sampler)
            levels = sigmas.to(start).unsqueeze(1).expand(-1, len(start))  # (K+1, B)
            clean = [
                predict_clean(path[k], acting.velocity(path[k], levels[k], prompts, as_pipeline=True), levels[k])
                for k in range(engine.steps)
            ]
        paths.append(path)
        cleans.append(torch.stack(clean))

    _micro_batches(engine).each(images, sample_rows)
    trajectory = Trajectory(
        groups=Groups(engine.iteration_index, (prompt,), images),
        latents=torch.cat(paths, dim=1),
        sigmas=sigmas,
        conditioning=conditioning,
        images=None,
        stored_velocity=False,
        generator_updates=0,
    )
    return trajectory, torch.cat(cleans, dim=1)


def _ask(
    engine: Engine, stage: SurrogateStage, trajectory: Trajectory, step: int, draws: int
) -> tuple[np.ndarray, Tensor]:
    """The implicit rewards (draws, G) after a step, and the mean direction over the draws (G, C, H, W).

    Noise levels and noises are drawn as in an update of the surrogate, and shared by the group.
    """
    settings, groups = engine.config.surrogate, trajectory.groups
    boundary = torch.full((groups.images,), step)
    lower = trajectory.sigmas[boundary + 1].clamp_min(settings.tau_min)
    views = []
    for draw in range(draws):
        tau = draw_levels(stage.seed, "tau-surrogate", groups, (step, draw), "group", lower, engine.shift)
        views.append(_view(engine, stage, trajectory, (step, draw), boundary, tau))
    implicit = torch.stack([view.reward for view in views])  # (draws, G)
    return implicit.double().cpu().numpy(), torch.stack([view.direction for view in views]).mean(0)


def _view(
    engine: Engine,
    stage: SurrogateStage,
    trajectory: Trajectory,
    counters: tuple[int, int],
    boundary: Tensor,
    tau: Tensor,
) -> SurrogateView:
    """What the surrogate says about all images of a group."""
    parts: list[SurrogateView] = []
    _micro_batches(engine).each(
        trajectory.groups.images,
        lambda rows: parts.append(stage.view(trajectory, rows, counters, boundary, tau)),
    )
    return SurrogateView(torch.cat([part.reward for part in parts]), torch.cat([part.direction for part in parts]))


def _decode(engine: Engine, latents: Tensor) -> np.ndarray:
    """Images, uint8 (G, height, width, 3)."""
    images: list[np.ndarray] = []
    _micro_batches(engine).each(len(latents), lambda rows: images.append(engine.roles.backbone.decode(latents[rows])))
    return np.concatenate(images)


def _micro_batches(engine: Engine) -> MicroBatches:
    """Micro-batches of the size of the run."""
    micro_batches = MicroBatches(engine.config.batch.micro_batch, halves=not engine.is_sharded)
    micro_batches.current = micro_batches.size or SAMPLING_BATCH
    return micro_batches
