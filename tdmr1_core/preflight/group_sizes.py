"""Rewards that compare the images of a prompt are refused where evaluations sample one image for a prompt.

In a training this cannot happen: `batch.group_size` is at least 2. A reward compares images if its RewardSpec has
`groupwise=True`. For a reward on a server, this is known after its set-up only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tdmr1_core.config import RunConfig
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.preflight.prompts import applies
from tdmr1_core.prompts.sets import PromptSet, spread
from tdmr1_rewards.api import RewardSpec

ENOUGH = 4
"""Images of a prompt that the hint suggests."""


@dataclass(frozen=True)
class EvaluationSize:
    """The number of images of an evaluation, and of those for each prompt, as arguments of `spread`."""

    images: int
    per_prompt: int | None


@dataclass(frozen=True)
class Names:
    """What sets the images of an evaluation, those of each prompt, and its rewards: settings or options."""

    images: str = "evaluation.images"
    per_prompt: str = "evaluation.images_per_prompt"
    rewards: str = "evaluation.rewards"


def check_evaluation_groups(
    config: RunConfig,
    sets: Iterable[PromptSet],
    evaluation: Mapping[str, RewardSpec],
    held_out: Mapping[str, RewardSpec],
) -> None:
    """Check the rewards of a run's evaluations, and those `held_out` for its guard, which has none without evaluations.

    Raises Tdmr1Error as `reject_single_images`.
    """
    sets = tuple(sets)
    size = EvaluationSize(config.evaluation.images, config.evaluation.images_per_prompt)
    reject_single_images(evaluation, sets, size, Names())
    if config.kind == "train" and config.guard.enabled:
        reject_single_images(held_out, sets, size, Names(rewards="guard.rewards"))


def reject_single_images(
    rewards: Mapping[str, RewardSpec], sets: Iterable[PromptSet], size: EvaluationSize, names: Names
) -> None:
    """Raise Tdmr1Error if a reward compares the images of a prompt, but would get one image of each prompt."""
    groupwise = [name for name, spec in rewards.items() if spec.groupwise]
    for prompt_set in sets if groupwise else ():
        prompts, per_prompt = spread(prompt_set.prompts, size.images, size.per_prompt)
        if per_prompt > 1:
            continue
        for name in groupwise:
            if any(applies(name, prompt) for prompt in prompts):
                raise _single_images(name, prompt_set, size, names)


def _single_images(reward: str, prompt_set: PromptSet, size: EvaluationSize, names: Names) -> Tdmr1Error:
    if size.per_prompt is None:
        count = len(prompt_set.prompts)
        why = f"{names.images} is {size.images} for the {count} prompts of {prompt_set.name}, so each has one image"
    else:
        why = f"{names.per_prompt} is {size.per_prompt}"
    return Tdmr1Error(
        f"reward {reward!r} compares the images of a prompt, but {why}",
        f"set {names.per_prompt} to 2 or more, such as {ENOUGH}, or name other rewards in {names.rewards}",
        code="setting-conflict",
        values={
            "reward": reward,
            "setting": names.per_prompt,
            "found": size.per_prompt,
            "images": size.images,
            "prompts": prompt_set.name,
        },
    )
