"""Checks the prompts of a run against its rewards before anything is loaded.

A prompt may name the rewards that score its images. A reward may say which prompts it cannot score (`preflight` of its
RewardSpec), such as prompts without a quoted text for `ocr_match`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tdmr1_core.errors import RunWarning, Tdmr1Error, close_match_hint, shorten
from tdmr1_core.models.prompt_lengths import Reader, characters_read
from tdmr1_core.preflight.rewards import ResolvedReward, RunRewards
from tdmr1_core.prompts.prompt import MANY_UNSCORED, Prompt
from tdmr1_core.prompts.sets import PromptSet
from tdmr1_rewards.scoring.combine import REWARDS_KEY, named_rewards
from tdmr1_rewards.sources.source import preflight

SHOWN = 40
"""Characters before and after the end of what is read that a message shows."""


def check_prompts(sets: Sequence[PromptSet], rewards: RunRewards, run_folder: Path | None = None) -> list[RunWarning]:
    """Check the prompt sets of evaluations, of which the first is that of training, against the rewards of a run.

    Returns a warning for each reward that cannot score many prompts of a set. Raises Tdmr1Error as
    `check_reward_names`, `check_applied` and `check_targets` do.
    """
    everything = (*rewards.trained, *rewards.evaluation, *rewards.held_out)
    check_reward_names(sets, list(dict.fromkeys(reward.config.name for reward in everything)))
    warnings = [*check_applied(sets[0], rewards.trained, training=True)]
    warnings += check_targets(sets[0], rewards.trained, training=True, run_folder=run_folder)
    evaluated = sets if rewards.evaluation != rewards.trained else sets[1:]
    for prompt_set in evaluated:
        warnings += check_applied(prompt_set, rewards.evaluation, training=False)
        warnings += check_targets(prompt_set, rewards.evaluation, training=False, run_folder=run_folder)
    return warnings


def check_reward_names(sets: Iterable[PromptSet], names: Sequence[str]) -> None:
    """Raise Tdmr1Error if a prompt names a reward that is not among `names`, or names rewards in another form."""
    for prompt_set in sets:
        unknown: Counter[str] = Counter()
        for prompt in prompt_set.prompts:
            unknown.update(set(named_rewards(prompt.metadata, prompt.file, prompt.place) or ()).difference(names))
        if unknown:
            name, count = unknown.most_common(1)[0]
            prompts = "1 prompt names" if count == 1 else f"{count} prompts name"
            raise Tdmr1Error(
                f"{prompts} the reward {name!r} in {prompt_set.name}, but the run has no reward of this name",
                f"{close_match_hint(name, names)}; correct the metadata key {REWARDS_KEY!r}, or add the reward",
                code="reward-metadata",
                values={"prompts": prompt_set.name, "unknown": dict(unknown), "rewards": list(names)},
            )


def check_applied(prompt_set: PromptSet, rewards: Sequence[ResolvedReward], *, training: bool) -> Iterator[RunWarning]:
    """Yield a warning if the metadata of every prompt exclude all rewards, so that no image has a score.

    Raises Tdmr1Error if these are the prompts of `training`. A distillation has no rewards.
    """
    names = [reward.config.name for reward in rewards]
    if not names or any(applies(name, prompt) for prompt in prompt_set.prompts for name in names):
        return
    message = (
        f"no reward applies to any prompt of {prompt_set.name}: the metadata {REWARDS_KEY!r} of each prompt names none "
        f"of {', '.join(names)}"
    )
    values = {"prompts": prompt_set.name, "count": len(prompt_set.prompts), "rewards": names}
    if training:
        hint = f"remove the metadata key {REWARDS_KEY!r}, or name a trained reward in it"
        raise Tdmr1Error(message, hint, code="nothing-scored", values=values)
    yield RunWarning(message, code="images-unscored", values=values)


def check_targets(
    prompt_set: PromptSet, rewards: Iterable[ResolvedReward], *, training: bool, run_folder: Path | None = None
) -> Iterator[RunWarning]:
    """Yield a warning for each reward that cannot score many prompts of a set.

    Raises Tdmr1Error if a reward can score none of the prompts of a `training` set that it applies to, and as the
    `preflight` function of a reward does. Rewards that run in another environment are not asked.
    """
    for reward in rewards:
        name = reward.config.name
        if reward.config.python is not None:
            continue
        prompts = [prompt for prompt in prompt_set.prompts if applies(name, prompt)]
        texts, metadata = [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
        reasons = preflight(reward.registered, reward.options, texts, metadata, run_folder)
        unscored = [(reason, text) for reason, text in zip(reasons, texts, strict=True) if reason is not None]
        if not unscored or len(unscored) < MANY_UNSCORED * len(texts):
            continue
        reason = Counter(reason for reason, _ in unscored).most_common(1)[0][0]
        example = next(text for found, text in unscored if found == reason)
        message = (
            f"reward {name!r} cannot score {len(unscored)} of the {len(texts)} prompts of {prompt_set.name}: {reason}, "
            f"such as {shorten(example)!r}"
        )
        values = {"reward": name, "prompts": prompt_set.name, "count": len(texts), "unscored": len(unscored)}
        values |= {"reason": reason, "example": example}
        if training and len(unscored) == len(texts):
            hint = "name other prompts with --prompts, or another reward"
            raise Tdmr1Error(message, hint, code="nothing-scored", values=values)
        yield RunWarning(message, code="images-unscored", values=values)


def applies(reward: str, prompt: Prompt) -> bool:
    """Whether a reward scores the images of a prompt. Metadata without the key name all rewards."""
    named = prompt.metadata.get(REWARDS_KEY)
    return named is None or reward in named


def check_lengths(
    prompt_set: PromptSet,
    readers: Sequence[Reader],
    rewards: Sequence[ResolvedReward] = (),
    run_folder: Path | None = None,
) -> RunWarning | None:
    """A warning if prompts are longer than the text encoders read; None if all are read completely.

    It has the number of prompts, where the first is truncated, and for how many a reward looks for a text that is not
    read. `run_folder` is that of the run, if there is one.
    """
    read = [(prompt, characters_read(readers, prompt.text)) for prompt in prompt_set.prompts]
    truncated = [(prompt.text, end) for prompt, end in read if end < len(prompt.text)]
    if not truncated:
        return None
    limits = ", ".join(dict.fromkeys(f"{reader.limit} tokens of {reader.name}" for reader in readers))
    text, end = truncated[0]
    message = (
        f"in {prompt_set.name}, {len(truncated)} of {len(read)} prompts exceed what the model reads ({limits}); the "
        f"first is read up to {text[max(0, end - SHOWN) : end]!r}, and {shorten(text[end:], SHOWN)!r} is ignored"
    )
    lost = {}
    for reward in rewards:
        if count := _lost_targets(reward, truncated, run_folder):
            lost[reward.config.name] = count
            message += f"; for {count} of them, reward {reward.config.name!r} looks for a text that is ignored"
    values = {"prompts": prompt_set.name, "count": len(read), "truncated": len(truncated), "lost": lost}
    return RunWarning(message, code="prompts-truncated", values=values)


def _lost_targets(reward: ResolvedReward, truncated: Sequence[tuple[str, int]], run_folder: Path | None) -> int:
    """The number of truncated prompts whose text, without metadata, the reward can score only as a whole."""
    if reward.config.python is not None:
        return 0
    nothing: list[dict[str, str]] = [{} for _ in truncated]
    reasons = partial(preflight, reward.registered, reward.options, metadata=nothing, run_folder=run_folder)
    whole = reasons([text for text, _ in truncated])
    start = reasons([text[:end] for text, end in truncated])
    return sum(before is None and after is not None for before, after in zip(whole, start, strict=True))
