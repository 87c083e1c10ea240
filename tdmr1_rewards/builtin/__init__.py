"""The rewards that come with tdmr1, registered through the same hook as any plugin's."""

from __future__ import annotations

from collections.abc import Callable

from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.hookspecs import hookimpl

SPECS = (
    RewardSpec(
        name="object_count",
        summary="does the picture hold exactly as many objects of a colour as asked?",
        factory="tdmr1_rewards.builtin.object_count:ObjectCount",
        options="tdmr1_rewards.builtin.object_count:ObjectCountOptions",
        default_prompts="count",
        default_preset="tiny",
        batch_size=96,
        image_format="array",
    ),
)


@hookimpl
def tdmr1_register_rewards(register: Callable[[RewardSpec], None]) -> None:
    """Register every built-in reward."""
    for spec in SPECS:
        register(spec)
