"""How often an iteration evaluates the denoiser. Imports neither torch nor diffusers."""

from __future__ import annotations

from tdmr1_core.config import RunConfig
from tdmr1_core.models.registry import ModelEntry


def passes_an_image(config: RunConfig, entry: ModelEntry, micro_batch: int) -> float:
    """Forward passes of the denoiser per image and iteration; a backward pass counts as one.

    A backward pass costs about as much as a forward pass, because frozen weights need no gradient. The generator is
    evaluated once more for the fake score where its velocity cannot be computed from the trajectory. The surrogate and
    its reference are evaluated once more for the group weights if a micro-batch is smaller than a group. For the
    generator they are evaluated at steps k < trunc_steps only.
    """
    trained = 2 + config.memory.recomputes
    guided = 1 + (config.generator.guidance_scale != 1)
    fake = config.fake.updates * (1 + trained + stale_fraction(config))
    generator: float = trained + guided + 1
    surrogate, steps = 0.0, config.rollout.step_count or entry.steps
    if is_rewarded(config):
        old = config.surrogate.trust_region is not None and config.surrogate.reference != "ema"
        group_weights = 2 * (micro_batch < config.batch.group_size)
        surrogate = config.surrogate.updates * (trained + 1 + old + group_weights)
        rewarded = min(config.generator.trunc_steps, steps) / steps
        generator += rewarded * (1 + 1 + (config.generator.rl_cfg != 1))
    return steps + config.timesteps.per_iteration * (fake + surrogate + generator)


def stale_fraction(config: RunConfig) -> float:
    """The fraction of trained steps at which the trajectory does not contain the velocity of the current generator."""
    if config.rollout.sampler != "euler" or config.rollout.eta > 0:
        return 1.0
    steps = config.timesteps.per_iteration
    return (steps - 1) / steps if config.timesteps.optimizer_step == "each" else 0.0


def is_rewarded(config: RunConfig) -> bool:
    """Whether the generator's loss has a reward term."""
    return config.kind == "train" and config.generator.reward_scale > 0


def inputs_of_frozen_passes(config: RunConfig) -> tuple[int, int]:
    """The inputs per image that the generator update gives to the teacher and to the surrogate in one pass each.

    A reference that is the teacher is evaluated in the teacher's pass. Without recomputation these passes are small
    beside the stored activations; with it they can determine the peak memory.
    """
    rewarded, generator = is_rewarded(config), config.generator
    teacher = 1 + (generator.guidance_scale != 1) + (rewarded and config.surrogate.reference != "ema")
    return teacher, rewarded * (1 + (generator.rl_cfg != 1))
