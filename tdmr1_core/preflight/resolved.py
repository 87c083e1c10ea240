"""What the settings of a run refer to: every model, prompt set and reward is looked up once, here.

`train`, `--dry-run`, `config validate`, `plan`, `probe` and a resume all start from the same record and differ only in
what they do with it. Nothing here needs torch or loads a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.models.licences import license_warnings
from tdmr1_core.models.registry import SAME, ModelEntry
from tdmr1_core.plugins import Extensions, discover
from tdmr1_core.preflight.absolute_paths import make_absolute
from tdmr1_core.preflight.checks import CheckedSettings, check_settings
from tdmr1_core.preflight.group_sizes import check_evaluation_groups
from tdmr1_core.preflight.prompts import check_prompts
from tdmr1_core.preflight.rewards import ResolvedReward, RewardFinder, specs_of
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.sets import (
    EMBEDDED_DOMAINS,
    PROMPT_SETS,
    PromptSet,
    held_out_companion,
    load_prompt_set,
    spread,
)
from tdmr1_rewards.registry import RewardRegistry
from tdmr1_rewards.sources.source import freeze_options


@dataclass(frozen=True)
class ResolvedEngine:
    """What an engine is built from: settings, model entry, training prompts and rewards.

    There are no rewards in a distillation, and in a run of which only the trained weights are used.
    """

    config: RunConfig
    extensions: Extensions
    finder: RewardFinder
    entry: ModelEntry
    prompts: PromptSet
    rewards: tuple[ResolvedReward, ...]


@dataclass(frozen=True)
class ResolvedRun(ResolvedEngine):
    """Everything that the settings of a run refer to.

    `evaluation_prompts` are the prompt sets of evaluations: the training prompts, and last the held-out ones.
    `evaluation_rewards` score evaluations; `held_out_rewards` are additional rewards that only the guard uses.
    `warnings` name settings without effect, prompts that rewards cannot score, a missing few-step LoRA, and restricted
    licenses. `preset` is the preset that the settings started from.
    """

    evaluation_prompts: tuple[PromptSet, ...]
    evaluation_rewards: tuple[ResolvedReward, ...]
    held_out_rewards: tuple[ResolvedReward, ...]
    warnings: tuple[RunWarning, ...] = ()
    preset: str | None = None

    @property
    def human_rewards(self) -> list[str]:
        """The names of trained rewards that ask people."""
        return [reward.config.name for reward in self.rewards if not reward.registered.spec.evaluates]

    @property
    def evaluated_prompts(self) -> list[Prompt]:
        """The prompts that evaluations sample; none if no reward scores them."""
        if not self.evaluation_rewards:
            return []
        images, per_prompt = self.config.evaluation.images, self.config.evaluation.images_per_prompt
        return [prompt for each in self.evaluation_prompts for prompt in spread(each.prompts, images, per_prompt)[0]]

    def with_choices(self, config: RunConfig) -> ResolvedRun:
        """The same run with what was chosen for this machine: options of rewards, and settings of batch and memory.

        `config` differs in nothing else. Raises Tdmr1Error for an option that this process does not accept.
        """
        rewards = self.finder.resolve_run(config, self.entry.domain)
        return replace(
            self,
            config=config,
            rewards=rewards.trained,
            evaluation_rewards=rewards.evaluation,
            held_out_rewards=rewards.held_out,
        )


def resolve_engine(config: RunConfig, extensions: Extensions | None = None) -> ResolvedEngine:
    """Look up what an engine needs. Raises Tdmr1Error for a model, prompt set or reward that does not exist."""
    extensions = extensions or discover()
    finder = RewardFinder(extensions.plugins.rewards)
    entry = extensions.entry(config.model)
    _check_fake_start(config, entry)
    rewards = finder.resolve(config.rewards)
    name = training_prompts_name(config, entry, rewards)
    return ResolvedEngine(config, extensions, finder, entry, load_prompt_set(name, entry.domain), rewards)


def resolve_run(
    config: RunConfig,
    extensions: Extensions | None = None,
    *,
    entry: ModelEntry | None = None,
    finder: RewardFinder | None = None,
    preset: str | None = None,
    run_folder: Path | None = None,
    scores: bool = True,
    evaluates: bool = True,
    prompt_sets: Mapping[str, PromptSet] | None = None,
) -> ResolvedRun:
    """Look up all that a run needs, and check the settings. The config of the result has absolute paths.

    `entry` and `finder` are for callers that have looked up the model or rewards already. `run_folder` is the folder of
    a run that is resumed. `scores` is False for a command that scores no image: prompts are then not checked against
    the rewards. `evaluates` is False for a command without the evaluations of a run: rewards may then compare images of
    a prompt although evaluations sample one image for each. `prompt_sets` are loaded already, by the names that the
    settings have. Raises Tdmr1Error for settings that contradict each other, for a model, prompt set, reward or option
    that does not exist, and for prompts that do not fit the rewards.
    """
    extensions = extensions or discover()
    finder = finder or RewardFinder(extensions.plugins.rewards)
    entry = entry or extensions.entry(config.model)
    _check_fake_start(config, entry)
    config = make_absolute(config, entry, extensions)
    rewards = finder.resolve_run(config, entry.domain)
    training = training_prompts_name(config, entry, rewards.trained)
    held_out = evaluation_prompts_name(config, entry, training)
    loaded = prompt_sets or {}
    sets = tuple(
        loaded[name] if name in loaded else load_prompt_set(name, entry.domain)
        for name in dict.fromkeys((training, held_out))
    )
    unscored = check_prompts(sets, rewards, run_folder) if scores else []
    if scores and evaluates and rewards.evaluation:
        check_evaluation_groups(config, sets, specs_of(rewards.evaluation), specs_of(rewards.held_out))
    checked = CheckedSettings(
        config,
        entry,
        evaluated=tuple(reward.config.name for reward in rewards.evaluation),
        evaluation_images=sum(
            each.images_drawn(config.evaluation.images, config.evaluation.images_per_prompt) for each in sets
        ),
    )
    return ResolvedRun(
        config,
        extensions,
        finder,
        entry,
        sets[0],
        rewards.trained,
        evaluation_prompts=sets,
        evaluation_rewards=rewards.evaluation,
        held_out_rewards=rewards.held_out,
        warnings=(
            *check_settings(checked),
            *unscored,
            *_check_few_step(config, entry, extensions),
            *license_warnings(entry),
        ),
        preset=preset,
    )


def _check_fake_start(config: RunConfig, entry: ModelEntry) -> None:
    """Raise Tdmr1Error if the fake score cannot start from the few-step LoRA, because it is on another backbone."""
    from_lora = config.kind == "train" and entry.lora is not None
    if from_lora and entry.teacher != SAME and config.fake.start == "generator":
        raise Tdmr1Error(
            "fake.start is generator, but the few-step LoRA does not fit the backbone of the fake score",
            "set fake.start=zero",
            code="setting-conflict",
            values={"setting": "fake.start"},
        )


def _check_few_step(config: RunConfig, entry: ModelEntry, extensions: Extensions) -> Iterator[RunWarning]:
    """Yield a warning for the training of a model that is not registered, without a few-step LoRA.

    The setting `model.teacher` (also `same`) says that the model itself is the few-step model.
    """
    registered = config.model.name in extensions.models.names
    if config.kind == "train" and not registered and entry.lora is None and config.model.teacher is None:
        steps = config.rollout.step_count or entry.steps
        yield RunWarning(
            f"{entry.base} is trained without a few-step LoRA, so it is sampled in {steps} steps without guidance; "
            "give --lora, or make a LoRA with `tdmr1 distill`; if it is itself a few-step model, set model.teacher",
            code="lora-missing",
            values={"model": entry.base, "steps": steps},
        )


def freeze_rewards(resolved: ResolvedRun) -> RunConfig:
    """The settings of a new run: options of rewards such as "auto" are replaced by what they select on this machine.

    Raises Tdmr1Error if a reward cannot select anything.
    """
    config = resolved.config
    evaluation = _freeze(resolved.evaluation_rewards) if config.evaluation.rewards else ()
    guard = _freeze(resolved.held_out_rewards) if config.guard.rewards else config.guard.rewards
    return config.model_copy(
        update={
            "rewards": _freeze(resolved.rewards),
            "evaluation": config.evaluation.model_copy(update={"rewards": evaluation}),
            "guard": config.guard.model_copy(update={"rewards": guard}),
        }
    )


def _freeze(rewards: Sequence[ResolvedReward]) -> tuple[RewardConfig, ...]:
    """The settings of rewards, with what options such as "auto" select on this machine (`freeze` of the spec).

    This may load what an option selects, such as an OCR engine. Raises Tdmr1Error if nothing can be selected.
    """
    frozen = []
    for reward in rewards:
        config = reward.config
        if reward.registered.spec.freeze is not None:
            options = freeze_options(reward.registered, config.options, config.python)
            config = config if options == config.options else config.model_copy(update={"options": options})
        frozen.append(config)
    return tuple(frozen)


def example_prompts(config: RunConfig, entry: ModelEntry, registry: RewardRegistry) -> PromptSet:
    """The training prompts of a run if they can still be read, else a prompt set of the model's domain.

    No file of a reward is imported.
    """
    first = next((reward.source or reward.name for reward in config.rewards), "")
    default = registry.get(first).spec.default_prompts if first in registry.names() else None
    for name in filter(None, (config.prompts.train, default, *PROMPT_SETS.get(entry.domain, ()))):
        with suppress(Tdmr1Error):
            return load_prompt_set(name, entry.domain)
    return load_prompt_set("scenes", "photo")


def training_prompts_name(config: RunConfig, entry: ModelEntry, rewards: Sequence[ResolvedReward]) -> str:
    """The prompt set of a run: that of the settings, else the first reward's default.

    For a reward without a default, an embedded model has one: the first set of its domain. Raises Tdmr1Error if there
    is none.
    """
    if config.prompts.train is not None:
        return config.prompts.train
    hint = "name a prompt set or file with --prompts"
    if not rewards:
        raise Tdmr1Error("a distillation needs prompts", hint, code="prompts-missing")
    first = rewards[0]
    if first.registered.spec.default_prompts:
        return first.registered.spec.default_prompts
    sets = list(PROMPT_SETS.get(entry.domain, ()))
    if not sets or entry.domain not in EMBEDDED_DOMAINS:
        listed = f"; sets for {entry.domain} models: {', '.join(sets)}" if sets else ""
        raise Tdmr1Error(
            f"reward {first.config.name!r} has no default prompts, and none are named",
            hint + listed,
            code="prompts-missing",
            values={"reward": first.config.name, "domain": entry.domain, "sets": sets},
        )
    return sets[0]


def evaluation_prompts_name(config: RunConfig, entry: ModelEntry, training: str) -> str:
    """The held-out prompt set of evaluations: that of the settings, else the companion of the training prompts."""
    named = config.prompts.evaluate
    return held_out_companion(training, entry.domain) if named is None else named
