"""Asks for the secrets that a run does not store."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tdmr1_core.preflight.layers import Flags

if TYPE_CHECKING:
    from tdmr1_core.config import RewardConfig


def with_typed_secrets(flags: Flags, rewards: Sequence[tuple[str, RewardConfig]]) -> Flags:
    """The flags, with a `--set` for each missing secret of rewards that is typed at a hidden prompt.

    Nothing is asked if stdin is no terminal. `rewards` are pairs of a place in the settings and a reward.
    """
    from tdmr1_core.runs.missing_inputs import missing_secrets
    from tdmr1_rewards.texts.redaction import complete, remember

    if sys.stdin is None or not sys.stdin.isatty():
        return flags
    sets = list(flags.sets)
    for missing in missing_secrets(rewards):
        if typed := getpass.getpass(f"{missing} = "):
            remember(typed)
            sets.append(f"{missing.setting}={json.dumps(complete(missing.path, typed))}")
    return replace(flags, sets=sets)
