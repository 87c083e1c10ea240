"""Checks of settings against each other: contradictory settings are rejected, settings without effect are reported.

Contradictions and ineffective settings are each listed in a table. A contradiction has a condition, a message and a
hint. An ineffective setting has a name (or a pattern such as `surrogate.*`), a condition and a reason. Most are
reported only where the value is not the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tdmr1_core.config import RewardConfig, RunConfig, Section
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.models.lora.metadata import has_alpha
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.preflight.rewards import MIN_GUARD_SAMPLES, trained_directions

ONE_SIDED_TRUST_REGION = 1.0
"""From this clip on, the lower bound 1 - clip is never reached: only preferred images are limited."""
WIDE_TRUST_REGION = 100.0
"""Above this value the trust region hardly ever limits an update."""


@dataclass(frozen=True)
class CheckedSettings:
    """What the checks read.

    `evaluated` are the names of the rewards that score evaluations. `evaluation_images` is how many images all prompt
    sets of one evaluation draw.
    """

    config: RunConfig
    entry: ModelEntry
    evaluated: tuple[str, ...]
    evaluation_images: int

    @property
    def steps(self) -> int:
        """K, the number of sampling steps."""
        return self.config.rollout.step_count or self.entry.steps

    @property
    def images(self) -> int:
        """Images of an iteration: groups x group size."""
        return self.config.batch.groups * self.config.batch.group_size

    @property
    def distills(self) -> bool:
        """Whether the run is a distillation, which has no rewards."""
        return self.config.kind == "distill"

    @property
    def uses_reward(self) -> bool:
        """Whether a surrogate is trained and followed."""
        return not self.distills and self.config.generator.reward_scale > 0

    @property
    def starts_from_lora(self) -> bool:
        """Whether the generator starts from a few-step LoRA."""
        return not self.distills and (self.config.model.lora is not None or self.entry.lora is not None)

    @property
    def lora_path(self) -> Path:
        """The few-step LoRA, as it is named in the settings or the model entry."""
        return Path(self.config.model.lora or self.entry.lora or "")

    @property
    def lora_stores_rank(self) -> bool:
        """Whether the LoRA is a safetensors file, which stores its rank."""
        path = self.lora_path
        return path.suffix == ".safetensors" or (path.is_dir() and any(path.glob("*.safetensors")))

    @property
    def trained_is_evaluated(self) -> bool:
        """Whether evaluations score a reward that is trained."""
        return bool(set(self.evaluated) & set(trained_directions(self.config)))

    @property
    def groups_compared(self) -> int:
        """The number of groups that share one standard deviation of the advantages."""
        return 1 if self.config.advantages.std == "group" else self.config.batch.groups

    @property
    def largest_advantage(self) -> float:
        """The largest advantage that a batch of this size can have, before clipping."""
        return math.sqrt(self.groups_compared * (self.config.batch.group_size - 1))


Condition = Callable[[CheckedSettings], bool]
Text = str | Callable[[CheckedSettings], str]


@dataclass(frozen=True)
class Contradiction:
    """Settings that make the run pointless, with the message and how to correct them."""

    applies: Condition
    message: Text
    hint: Text


@dataclass(frozen=True)
class Ineffective:
    """A setting, or a pattern of settings, that has no effect under a condition, and the reason.

    `at_default` reports the setting even where it has its default value.
    """

    setting: str
    applies: Condition
    reason: Text
    at_default: bool = False


CONTRADICTIONS = (
    Contradiction(
        lambda s: s.config.timesteps.per_iteration > s.steps,
        lambda s: f"timesteps.per_iteration is {s.config.timesteps.per_iteration}, but there are only {s.steps} steps",
        lambda s: f"set timesteps.per_iteration to {s.steps} or less",
    ),
    Contradiction(
        lambda s: not s.distills and all(reward.weight == 0 for reward in s.config.rewards),
        "every reward has weight 0, so the run cannot learn",
        "give at least one reward a weight, such as rewards.0.weight=1",
    ),
    Contradiction(
        lambda s: s.uses_reward and s.config.generator.trunc_steps == 0,
        "generator.trunc_steps is 0, so no step uses the reward",
        "set generator.trunc_steps to 1 or more, or generator.reward_scale=0 for a run without the reward term",
    ),
    Contradiction(
        lambda s: s.uses_reward and s.config.generator.tdm_weight == 1,
        "generator.tdm_weight is 1, so the reward term has weight 0",
        "set generator.tdm_weight below 1, or generator.reward_scale=0 for a run without the reward term",
    ),
    Contradiction(
        lambda s: s.uses_reward and s.config.surrogate.trust_region is not None and s.config.surrogate.ema_max == 0,
        "surrogate.trust_region cannot limit anything: with surrogate.ema_max 0 the EMA equals the surrogate",
        "set surrogate.trust_region=null, or raise surrogate.ema_max (published: 0.3)",
    ),
    Contradiction(
        lambda s: s.config.memory.shard and s.config.memory.weights != "none",
        lambda s: f"memory.shard cannot divide weights that memory.weights={s.config.memory.weights} quantizes",
        "set memory.weights=none or memory.shard=false",
    ),
)
STOPPING = (
    Contradiction(
        lambda s: not s.config.guard.enabled,
        "guard.stop is on, but guard.enabled is off",
        "set guard.enabled=true or guard.stop=false",
    ),
    Contradiction(
        lambda s: not 0 < s.config.evaluation.every < s.config.iterations,
        "guard.stop has no effect: there is no evaluation between start and end",
        lambda s: f"set evaluation.every to a number from 1 to {s.config.iterations - 1}, or guard.stop=false",
    ),
    Contradiction(
        lambda s: not s.distills and not s.trained_is_evaluated,
        "guard.stop has no effect: evaluations score none of the trained rewards",
        "name one of them in evaluation.rewards, or set guard.stop=false",
    ),
    Contradiction(
        lambda s: s.evaluation_images < MIN_GUARD_SAMPLES,
        lambda s: (
            f"guard.stop has no effect: evaluations draw {s.evaluation_images} images, but the guard needs "
            f"{MIN_GUARD_SAMPLES}"
        ),
        "raise evaluation.images",
    ),
)
"""Why a guard that shall stop the run cannot; only the first that applies is reported."""

DISTILLS = "a distillation has no rewards"
NO_START = "the run starts from no LoRA"
NO_REWARD_TERM = "generator.reward_scale is 0, so no surrogate is trained"
NOT_EVALUATED = "no reward scores evaluations: evaluation.rewards is empty, and no trained reward can score evaluations"
SINGLE = "with a single reward, normalization removes its scale"


def _single(s: CheckedSettings) -> bool:
    return len(s.config.rewards) == 1


INEFFECTIVE = (
    # A distillation
    *(
        Ineffective(f"{section}.*", lambda s: s.distills, DISTILLS)
        for section in ("surrogate", "advantages", "scoring", "guard")
    ),
    *(
        Ineffective(f"generator.{name}", lambda s: s.distills, DISTILLS)
        for name in ("rl_cfg", "tau_min", "reward_scale", "tdm_weight", "trunc_steps", "joint_huber")
    ),
    *(
        Ineffective(name, lambda s: s.distills, "a distillation starts from no LoRA")
        for name in ("model.lora", "model.adapter_scale", "fake.start")
    ),
    # A run without the reward term
    *(
        Ineffective(name, lambda s: not s.uses_reward, NO_REWARD_TERM)
        for name in ("surrogate.*", "advantages.*", "generator.rl_cfg", "generator.tau_min", "scoring.combine")
    ),
    # The few-step LoRA
    Ineffective("model.adapter_scale", lambda s: not s.starts_from_lora, NO_START),
    Ineffective("fake.start", lambda s: not s.starts_from_lora, NO_START),
    Ineffective(
        "model.rank", lambda s: s.starts_from_lora and s.lora_stores_rank, "the few-step LoRA file stores its rank"
    ),
    Ineffective(
        "model.alpha",
        lambda s: s.starts_from_lora and has_alpha(s.lora_path),
        "the few-step LoRA file stores its alpha",
    ),
    # Steps and batch
    Ineffective(
        "generator.trunc_steps",
        lambda s: s.config.generator.trunc_steps > s.steps,
        lambda s: f"{s.config.generator.trunc_steps} means all steps, and there are {s.steps}",
        at_default=True,
    ),
    *(
        Ineffective(name, lambda s: s.steps == 1, "there is a single step")
        for name in ("timesteps.k_sharing", "surrogate.boundary", "surrogate.time_weight")
    ),
    Ineffective(
        "timesteps.optimizer_step",
        lambda s: s.config.timesteps.per_iteration == s.config.fake.updates == s.config.surrogate.updates == 1,
        "an iteration has one update",
    ),
    Ineffective(
        "batch.micro_batch",
        lambda s: isinstance(s.config.batch.micro_batch, int) and s.config.batch.micro_batch > s.images,
        lambda s: f"an iteration has {s.images} images",
    ),
    Ineffective("batch.teaching_floor", lambda s: s.config.batch.prompts == "uniform", "batch.prompts is uniform"),
    Ineffective(
        "optimizer.final_lr",
        lambda s: s.config.iterations == 1,
        "learning rates change from the second iteration on",
    ),
    Ineffective(
        "rollout.eta",
        lambda s: s.config.rollout.sampler != "euler",
        lambda s: f"the sampler {s.config.rollout.sampler} adds no noise",
    ),
    Ineffective(
        "rollout.dpm_levels", lambda s: s.config.rollout.sampler == "euler", "only the sampler dpm-solver++ uses it"
    ),
    # Losses
    *(
        Ineffective(f"generator.{name}", lambda s: s.config.generator.loss == "squared", "generator.loss is squared")
        for name in ("huber_c", "joint_huber")
    ),
    Ineffective(
        "generator.joint_huber",
        lambda s: s.config.generator.trunc_steps >= s.steps,
        "every step has the reward term",
    ),
    *(
        Ineffective(
            f"surrogate.{name}",
            lambda s: s.config.surrogate.trust_region is None and s.config.surrogate.reference == "frozen",
            "neither the trust region nor the reference uses the EMA",
        )
        for name in ("ema_slope", "ema_max")
    ),
    Ineffective(
        "surrogate.time_weight", lambda s: s.config.surrogate.boundary == "last", "(k+1)/K is 1 at the last boundary"
    ),
    # Advantages
    Ineffective("advantages.std", lambda s: s.config.batch.groups == 1, "the only group is the whole batch"),
    *(
        Ineffective(f"advantages.{name}", lambda s: s.config.advantages.binary, "advantages.binary uses the sign only")
        for name in ("std", "clip")
    ),
    Ineffective(
        "advantages.clip",
        lambda s: s.config.advantages.clip >= s.largest_advantage,
        lambda s: (
            f"no advantage of {s.config.batch.groups} groups of {s.config.batch.group_size} images is above "
            f"{s.largest_advantage:.3g}"
        ),
    ),
    Ineffective(
        "scoring.combine",
        lambda s: _single(s) and (s.groups_compared == 1 or s.config.advantages.binary),
        SINGLE,
    ),
    Ineffective("rewards.0.weight", lambda s: _single(s) and s.config.rewards[0].weight > 0, SINGLE),
    # Device
    Ineffective(
        "memory.text_encoders",
        lambda s: s.config.model.device == "cpu" and s.config.memory.text_encoders == "cpu",
        "model.device is cpu",
    ),
    Ineffective(
        "memory.text_encoders",
        lambda s: s.config.memory.shard,
        "memory.shard divides the text encoders among the processes",
    ),
    Ineffective(
        "memory.trajectories",
        lambda s: s.config.model.device == "cpu" and s.config.memory.trajectories == "cpu",
        "model.device is cpu",
    ),
    # Trackers
    Ineffective(
        "saving.tensorboard", lambda s: s.config.tracking is not None, "tracking names the trackers of the run"
    ),
    *(
        Ineffective(f"tracking_{name}", lambda s: not s.config.tracking, "tracking names no tracker")
        for name in ("project", "tags")
    ),
    # Evaluations and the guard
    Ineffective(
        "evaluation.every",
        lambda s: bool(s.evaluated) and s.config.evaluation.every >= s.config.iterations,
        lambda s: f"the run has {s.config.iterations} iterations",
    ),
    *(
        Ineffective(f"{section}.rewards.*.weight", lambda _: True, "every reward is reported separately")
        for section in ("evaluation", "guard")
    ),
    *(
        Ineffective(name, lambda s: not s.evaluated, NOT_EVALUATED)
        for name in ("evaluation.every", "evaluation.images", "evaluation.images_per_prompt", "guard.*")
    ),
    *(
        Ineffective(f"guard.{name}", lambda s: not s.config.guard.enabled, "guard.enabled is off")
        for name in ("stop", "rewards", "threshold")
    ),
)
"""For a setting that several rows match, the first row that applies gives the reason."""


def check_settings(settings: CheckedSettings) -> tuple[RunWarning, ...]:
    """Raise Tdmr1Error for contradictions, all at once; return a warning for each setting that has no effect."""
    reject_contradictions(settings)
    return tuple(find_ineffective_settings(settings))


def reject_contradictions(settings: CheckedSettings) -> None:
    """Raise Tdmr1Error if settings contradict each other, with all contradictions at once."""
    problems = [row for row in CONTRADICTIONS if row.applies(settings)]
    if settings.config.guard.stop:
        problems += [row for row in STOPPING if row.applies(settings)][:1]
    if not problems:
        return
    messages = [_text(row.message, settings) for row in problems]
    hints = [_text(row.hint, settings) for row in problems]
    start = "" if len(problems) == 1 else f"{len(problems)} contradictions in the settings: "
    raise Tdmr1Error(
        start + "; ".join(messages), "; ".join(hints), code="setting-conflict", values={"problems": messages}
    )


def find_ineffective_settings(settings: CheckedSettings) -> Iterator[RunWarning]:
    """A warning for each setting that has no effect. Settings at their default are reported only with `at_default`."""
    changed = list(changed_settings(settings.config))
    always = [row.setting for row in INEFFECTIVE if row.at_default]
    for name in dict.fromkeys((*changed, *always)):
        for row in INEFFECTIVE:
            reported = name in changed or row.at_default
            if reported and matches(name, row.setting) and row.applies(settings):
                reason = _text(row.reason, settings)
                yield _warning(f"{name} has no effect: {reason}", name, reason)
                break
    yield from _wide_trust_region(settings)


def changed_settings(config: Section, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings that are not at their default; items of a list of rewards have a number."""
    for name, field in type(config).model_fields.items():
        value: Any = getattr(config, name)
        if isinstance(value, Section):
            yield from changed_settings(value, f"{prefix}{name}.")
        elif value != field.get_default(call_default_factory=True):
            yield f"{prefix}{name}"
        if isinstance(value, tuple):
            for number, item in enumerate(value):
                if isinstance(item, RewardConfig):
                    yield from changed_settings(item, f"{prefix}{name}.{number}.")


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name fits a pattern: `*` stands for one part, a final `**` for all remaining parts."""
    parts, wanted = name.split("."), pattern.split(".")
    if wanted[-1] == "**":
        wanted = wanted[:-1]
        parts = parts[: len(wanted)]
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _text(text: Text, settings: CheckedSettings) -> str:
    return text if isinstance(text, str) else text(settings)


def _warning(message: str, setting: str, reason: str) -> RunWarning:
    return RunWarning(message, code="setting-ineffective", values={"setting": setting, "reason": reason})


def _wide_trust_region(settings: CheckedSettings) -> Iterator[RunWarning]:
    """A trust region whose ratio exp(l_old - l) can hardly reach the clip."""
    clip = settings.config.surrogate.trust_region
    if not settings.uses_reward or clip is None or clip < ONE_SIDED_TRUST_REGION:
        return
    reason = f"it limits preferred images only: no ratio is below 1 - {clip:g}"
    if clip > WIDE_TRUST_REGION:
        reason = f"it hardly limits anything: the loss must be {math.log1p(clip):.1f} below that of the EMA"
    yield _warning(f"surrogate.trust_region is {clip:g}: {reason}", "surrogate.trust_region", reason)
