"""The hook that a plugin implements to register rewards. Entry-point group: `tdmr1`."""

from __future__ import annotations

from collections.abc import Callable

import pluggy

from tdmr1_rewards.api import RewardSpec

hookspec = pluggy.HookspecMarker("tdmr1")
hookimpl = pluggy.HookimplMarker("tdmr1")


@hookspec
def tdmr1_register_rewards(register: Callable[[RewardSpec], None]) -> None:
    """Call `register(RewardSpec(...))` once for each reward of the plugin.

    The hook runs whenever rewards are listed, so it must be fast. Do not import the reward here: the spec names its
    factory as "module:attr".
    """
