"""Settings that do nothing in a run: the contradictory ones are refused, the merely idle ones are told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from tdmr1_core.config import RunConfig, Section
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.entry import ModelEntry
from tdmr1_core.models.lora.metadata import says_alpha
from tdmr1_core.plugins import Extensions
from tdmr1_core.preflight.evaluation_rewards import FEWEST, evaluation_rewards, trained_reward_is_evaluated
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.sets import evaluation_prompts, spread
from tdmr1_rewards.registry import RewardRegistry

OF_LORAS = {"lora", "adapter_scale"}
"""Settings of the LoRA that a training starts from."""
ONE_SIDED, WIDE = 1.0, 100.0
"""From the first on a trust region holds back preferred images alone, beyond the second hardly any."""


def check_settings(config: RunConfig, entry: ModelEntry, extensions: Extensions) -> list[str]:
    """A sentence for every setting that is not at its default and has no effect.

    Raises Tdmr1Error for settings that undo what the run is for, and for prompts that can't be had.
    """
    reject_contradictions(config, entry, extensions)
    registry = extensions.plugins.rewards
    idle = {
        **_of_the_steps(config, entry),
        **_of_the_losses(config),
        **_of_the_advantages(config),
        **_of_the_device(config),
        **_of_evaluations(config, registry),
        **_of_the_model(config, entry),
        **_of_the_kind(config),
    }
    return [f"{name} has no effect: {reason}" for name, reason in idle.items()] + list(_wide_trust(config))


def reject_contradictions(config: RunConfig, entry: ModelEntry, extensions: Extensions) -> None:
    """Raise Tdmr1Error for settings that undo what the run is for, all of them at once, and for prompts as they do."""
    evaluated = evaluation_prompts(config, extensions, entry.domain)
    problems = [
        *_undone(config, entry),
        *_stopping_nothing(config, extensions.plugins.rewards, list(evaluated.values())),
    ]
    if problems:
        start = "" if len(problems) == 1 else f"{len(problems)} settings undo one another: "
        raise Tdmr1Error(start + "; ".join(told for told, _ in problems), "; ".join(hint for _, hint in problems))


def _undone(config: RunConfig, entry: ModelEntry) -> Iterator[tuple[str, str]]:
    """What is wrong, and how to mend it."""
    generator, surrogate, steps = config.generator, config.surrogate, config.rollout.steps or entry.steps
    if config.timesteps.per_iteration > steps:
        yield (
            f"timesteps.per_iteration is {config.timesteps.per_iteration} but there are only {steps} steps",
            f"set timesteps.per_iteration to {steps} or less",
        )
    if config.kind == "train":
        if all(reward.weight == 0 for reward in config.rewards):
            yield "every reward has weight 0, so there is nothing to learn", "give one a weight"
        if generator.reward_scale > 0 and generator.trunc_steps == 0:
            yield (
                "generator.trunc_steps is 0, so that no step gets the reward",
                "set generator.reward_scale=0 if that is meant, or let it be 1 or more",
            )
        if generator.reward_scale > 0 and generator.tdm_weight == 1:
            yield (
                "generator.tdm_weight is 1, which leaves the reward a weight of 0",
                "set generator.reward_scale=0 if that is meant, or lower it",
            )
        if surrogate.trust_region is not None and surrogate.ema_max == 0 and generator.reward_scale > 0:
            yield (
                "surrogate.trust_region can never bind: with surrogate.ema_max 0 the average is the surrogate itself",
                "set surrogate.trust_region=null, or raise surrogate.ema_max (published: 0.3)",
            )


def _stopping_nothing(
    config: RunConfig, registry: RewardRegistry, prompt_sets: Sequence[Sequence[Prompt]]
) -> Iterator[tuple[str, str]]:
    """Why a guard that is to stop the run can't, and how to mend it."""
    if not config.guard.stop:
        return
    images = sum(len(chosen) * each for chosen, each in (spread(p, config.evaluation.images) for p in prompt_sets))
    if not config.guard.enabled:
        yield "guard.stop is on and guard.enabled is off", "drop one of the two"
    elif not 0 < config.evaluation.every < config.iterations:
        yield (
            "guard.stop can stop nothing: the guard looks at evaluations, and there is none before the end",
            f"set evaluation.every to less than the {config.iterations} iterations",
        )
    elif config.kind == "train" and not trained_reward_is_evaluated(config, registry):
        yield (
            "guard.stop can stop nothing: evaluations judge none of the trained rewards",
            "name one of them in evaluation.rewards, or set guard.stop=false",
        )
    elif images < FEWEST:
        yield (
            f"guard.stop can stop nothing: evaluations draw {images} images, and the guard needs {FEWEST}",
            "raise evaluation.images",
        )


def _of_the_kind(config: RunConfig) -> dict[str, str]:
    """Settings of what this run does not do."""
    asking = {"rl_cfg", "tau_min"}
    idle: dict[str, str] = {}
    if config.kind == "distill":
        sections = {"surrogate", "advantages", "scoring", "guard"}
        of_generator = asking | {"reward_scale", "tdm_weight", "trunc_steps"}
        reason = "a distillation has no rewards"
        idle = {f"model.{name}": "a distillation starts from no LoRA" for name in _changed(config.model) & OF_LORAS}
        idle |= {"fake.start": "a distillation starts from no LoRA"} if config.fake.start != "generator" else {}
    elif config.generator.reward_scale == 0:
        sections, of_generator = {"surrogate", "advantages"}, asking
        reason = "generator.reward_scale is 0, so that no surrogate is trained"
        idle = {"scoring.combine": reason} if config.scoring.combine != "weighted_sum" else {}
    else:
        return {}
    changed = {name: sorted(_changed(getattr(config, name))) for name in sorted(sections)}
    changed["generator"] = sorted(_changed(config.generator) & of_generator)
    return idle | {f"{section}.{name}": reason for section, names in changed.items() for name in names}


def _of_the_model(config: RunConfig, entry: ModelEntry) -> dict[str, str]:
    """What a LoRA says for itself: its rank, unless it is a list without names, and maybe its alpha."""
    if config.kind == "distill":
        return {}
    if config.model.lora is None and entry.lora is None:
        scaled, from_zero = config.model.adapter_scale is not None, config.fake.start != "generator"
        changed = {"model.adapter_scale": scaled, "fake.start": from_zero}
        return {name: "the run starts from no LoRA" for name in changed if changed[name]}
    source, idle = Path(config.model.lora or entry.lora or ""), dict[str, str]()
    named = source.suffix == ".safetensors" or (source.is_dir() and any(source.glob("*.safetensors")))
    if config.model.rank is not None and named:
        idle["model.rank"] = "the LoRA that the run starts from has its own"
    if config.model.alpha is not None and says_alpha(source):
        idle["model.alpha"] = "the LoRA that the run starts from says its own"
    return idle


def _of_the_steps(config: RunConfig, entry: ModelEntry) -> dict[str, str]:
    """Settings of steps that there are not."""
    idle: dict[str, str] = {}
    steps, times, surrogate = config.rollout.steps or entry.steps, config.timesteps, config.surrogate
    images = config.batch.groups * config.batch.group_size
    if config.generator.trunc_steps > steps:
        idle["generator.trunc_steps"] = f"{config.generator.trunc_steps} means all steps, and there are {steps}"
    if steps == 1:
        alone = {
            "timesteps.k_sharing": times.k_sharing != "step",
            "surrogate.boundary": surrogate.boundary != "weighted",
            "surrogate.time_weight": not surrogate.time_weight,
        }
        idle |= {name: "there is a single step" for name, changed in alone.items() if changed}
    if times.optimizer_step == "each" and times.per_iteration == config.fake.updates == surrogate.updates == 1:
        idle["timesteps.optimizer_step"] = "an iteration has one update"
    if isinstance(config.batch.micro_batch, int) and config.batch.micro_batch > images:
        idle["batch.micro_batch"] = f"an iteration has {images} images"
    if config.iterations == 1 and config.optimizer.final_lr != 1:
        idle["optimizer.final_lr"] = "learning rates begin to fall with the second iteration"
    if config.rollout.eta > 0 and config.rollout.sampler != "euler":
        idle["rollout.eta"] = f"{config.rollout.sampler} adds no noise"
    return idle


def _of_the_losses(config: RunConfig) -> dict[str, str]:
    """Settings of losses that others leave nothing to do."""
    idle: dict[str, str] = {}
    generator, surrogate = config.generator, config.surrogate
    if generator.loss == "squared" and "huber_c" in _changed(generator):
        idle["generator.huber_c"] = "generator.loss is squared"
    if surrogate.trust_region is None and surrogate.reference == "frozen":
        for name in sorted(_changed(surrogate) & {"ema_slope", "ema_max"}):
            idle[f"surrogate.{name}"] = "neither a trust region nor the reference looks at the average"
    if surrogate.boundary == "last" and not surrogate.time_weight:
        idle["surrogate.time_weight"] = "(k+1)/K is 1 at the last boundary"
    return idle


def _wide_trust(config: RunConfig) -> Iterator[str]:
    """What a wide trust region lets pass: the ratio exp(l_old - l) is above 0, and far above 1 only after a leap."""
    trust = config.surrogate.trust_region
    if config.kind == "distill" or config.generator.reward_scale == 0 or trust is None or trust < ONE_SIDED:
        return
    told = f"surrogate.trust_region holds back preferred images alone: no ratio is below 1 - {trust:g}"
    if trust > WIDE:
        needed = math.log1p(trust)
        told = f"surrogate.trust_region can hardly bind: its ratio needs a loss {needed:.1f} below that of the average"
    yield told


def _of_the_advantages(config: RunConfig) -> dict[str, str]:
    """Settings that make no difference between images."""
    idle: dict[str, str] = {}
    settings, batch, single = config.advantages, config.batch, len(config.rewards) == 1
    by_group = settings.std == "group" or batch.groups == 1
    most = math.sqrt((1 if by_group else batch.groups) * (batch.group_size - 1))
    if settings.std == "group" and batch.groups == 1:
        idle["advantages.std"] = "the only group is the whole batch"
    if settings.clip >= most and "clip" in _changed(settings):
        idle["advantages.clip"] = f"no advantage of {batch.groups} groups of {batch.group_size} is above {most:.3g}"
    if settings.binary:
        reason = "advantages.binary keeps the sign alone"
        idle |= {f"advantages.{name}": reason for name in sorted(_changed(settings) & {"std", "clip"})}
    small = "but for differences near 1e-4"
    if single and config.scoring.combine == "normalised" and (by_group or settings.binary):
        idle["scoring.combine"] = f"a single reward is compared within each group as it is, {small}"
    if single and config.rewards[0].weight > 0 and config.rewards[0].weight != 1:
        idle["rewards.0.weight"] = f"advantages of a single reward have no scale, {small}"
    return idle


def _of_the_device(config: RunConfig) -> dict[str, str]:
    """What leaves a device that it can't leave."""
    if config.model.device != "cpu":
        return {}
    away = [name for name in ("text_encoders", "trajectories") if getattr(config.memory, name) == "cpu"]
    return {f"memory.{name}": "model.device is cpu" for name in away}


def _of_evaluations(config: RunConfig, registry: RewardRegistry) -> dict[str, str]:
    """Settings of evaluations that are not made, and of the guard, which looks at them."""
    idle: dict[str, str] = {}
    evaluation, guard = config.evaluation, config.guard
    if evaluation.every >= config.iterations:
        idle["evaluation.every"] = f"the run has {config.iterations} iterations"
    for place, rewards in (("evaluation", evaluation.rewards), ("guard", guard.rewards or ())):
        weighted = [number for number, reward in enumerate(rewards) if reward.weight != 1]
        reason = "every reward is reported by itself"
        idle |= {f"{place}.rewards.{number}.weight": reason for number in weighted}
    if not evaluation_rewards(config, registry):
        reason = "no reward judges evaluations: evaluation.rewards names none, nor is one trained that could"
        idle |= {f"evaluation.{name}": reason for name in sorted(_changed(evaluation) & {"every", "images"})}
        idle |= {f"guard.{name}": reason for name in sorted(_changed(guard))}
    elif not guard.enabled:
        idle |= {f"guard.{name}": "guard.enabled is off" for name in sorted(_changed(guard) - {"enabled"})}
    return idle


def _changed(section: Section) -> set[str]:
    """The settings of a section that are not at their default."""
    fields = type(section).model_fields
    return {name for name in fields if getattr(section, name) != fields[name].get_default(call_default_factory=True)}
