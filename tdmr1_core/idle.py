"""Settings that do nothing in a run: the contradictory ones are refused, the merely idle ones are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tdmr1_core.config import RunConfig, Section
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.entry import ModelEntry
from tdmr1_core.runs.judges import is_rise_seen
from tdmr1_rewards.registry import RewardRegistry


def check_settings(config: RunConfig, entry: ModelEntry, registry: RewardRegistry) -> list[str]:
    """A sentence for every setting that is not at its default and has no effect.

    Raises Tdmr1Error for settings that undo what the run is for.
    """
    refuse_contradictions(config, registry)
    idle = {**_of_the_kind(config), **_of_the_model(config, entry), **_of_one_another(config, entry)}
    return [f"{name} has no effect: {reason}" for name, reason in idle.items()]


def refuse_contradictions(config: RunConfig, registry: RewardRegistry) -> None:
    """Raise Tdmr1Error for settings that undo what the run is for, all of them at once."""
    problems = list(_contradictions(config, registry))
    if problems:
        start = "" if len(problems) == 1 else f"{len(problems)} settings undo one another: "
        raise Tdmr1Error(start + "; ".join(told for told, _ in problems), "; ".join(hint for _, hint in problems))


def _contradictions(config: RunConfig, registry: RewardRegistry) -> Iterator[tuple[str, str]]:
    """What is wrong, and how to mend it."""
    generator, surrogate = config.generator, config.surrogate
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
    if config.guard.stop and not config.guard.enabled:
        yield "guard.stop is on and guard.enabled is off", "drop one of the two"
    elif config.guard.stop and config.evaluation.every == 0:
        yield (
            "guard.stop can stop nothing: the guard looks at evaluations, and there is none before the end",
            "set evaluation.every",
        )
    elif config.kind == "train" and config.guard.stop and not is_rise_seen(config, registry):
        yield (
            "guard.stop can stop nothing: evaluations judge none of the trained rewards",
            "name one of them in evaluation.rewards, or set guard.stop=false",
        )


def _of_the_kind(config: RunConfig) -> dict[str, str]:
    """Settings of what this run does not do."""
    asking = {"rl_cfg", "tau_min"}
    if config.kind == "distill":
        sections = {"surrogate", "advantages", "scoring", "guard"}
        of_generator = asking | {"reward_scale", "tdm_weight", "trunc_steps"}
        reason = "a distillation has no rewards"
    elif config.generator.reward_scale == 0:
        sections, of_generator = {"surrogate"}, asking
        reason = "generator.reward_scale is 0, so that no surrogate is trained"
    else:
        return {}
    changed = {name: sorted(_changed(getattr(config, name))) for name in sorted(sections)}
    changed["generator"] = sorted(_changed(config.generator) & of_generator)
    return {f"{section}.{name}": reason for section, names in changed.items() for name in names}


def _of_the_model(config: RunConfig, entry: ModelEntry) -> dict[str, str]:
    """What a LoRA says for itself: its rank, unless it is a list without names."""
    source = Path(config.model.lora or entry.lora or "")
    named = source.suffix == ".safetensors" or (source.is_dir() and any(source.glob("*.safetensors")))
    if config.kind == "distill" or config.model.rank is None or not named:
        return {}
    return {"model.rank": "the LoRA that the run starts from has its own"}


def _of_one_another(config: RunConfig, entry: ModelEntry) -> dict[str, str]:
    """Settings that others leave nothing to do."""
    idle: dict[str, str] = {}
    steps, generator, surrogate = config.rollout.steps or entry.steps, config.generator, config.surrogate
    images = config.batch.groups * config.batch.group_size
    if generator.trunc_steps > steps:
        idle["generator.trunc_steps"] = f"{generator.trunc_steps} means all steps, and there are {steps}"
    if generator.loss == "squared" and "huber_c" in _changed(generator):
        idle["generator.huber_c"] = "generator.loss is squared"
    if surrogate.trust_region is None and surrogate.reference == "frozen":
        for name in sorted(_changed(surrogate) & {"ema_slope", "ema_max"}):
            idle[f"surrogate.{name}"] = "neither a trust region nor the reference looks at the average"
    if surrogate.boundary == "last" and not surrogate.time_weight:
        idle["surrogate.time_weight"] = "(k+1)/K is 1 at the last boundary"
    if config.advantages.binary and config.advantages.std != "global":
        idle["advantages.std"] = "advantages.binary keeps the sign alone"
    if config.advantages.binary and config.advantages.clip >= 1 and "clip" in _changed(config.advantages):
        idle["advantages.clip"] = "advantages.binary makes every advantage 1 or less"
    if config.rollout.eta > 0 and config.rollout.sampler != "euler":
        idle["rollout.eta"] = f"{config.rollout.sampler} adds no noise"
    if isinstance(config.batch.micro_batch, int) and config.batch.micro_batch > images:
        idle["batch.micro_batch"] = f"an iteration has {images} images"
    if len(config.rewards) == 1 and config.rewards[0].weight > 0 and config.rewards[0].weight != 1:
        idle["rewards.0.weight"] = "advantages of a single reward have no scale"
    if config.evaluation.every > config.iterations:
        idle["evaluation.every"] = f"the run has {config.iterations} iterations"
    if not config.guard.enabled:
        idle |= {f"guard.{name}": "guard.enabled is off" for name in sorted(_changed(config.guard) - {"enabled"})}
    return idle


def _changed(section: Section) -> set[str]:
    """The settings of a section that are not at their default."""
    fields = type(section).model_fields
    return {name for name in fields if getattr(section, name) != fields[name].get_default(call_default_factory=True)}
