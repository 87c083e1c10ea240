"""Reads and restores the state of a reward, which is plain JSON data. Standard library only."""

from __future__ import annotations

import json
from typing import Any

from tdmr1_rewards.calling.result_checks import CallFailed
from tdmr1_rewards.errors import one_line
from tdmr1_rewards.texts.documents import parse_json

State = dict[str, Any]


def has_state(reward: Any) -> bool:
    """Whether a reward has a state. The `state_dict` of a torch module does not count: it contains the weights."""
    method = getattr(reward, "state_dict", None)
    return callable(method) and not (getattr(method, "__module__", None) or "").startswith("torch.")


def get_state(reward: Any) -> State | None:
    """A copy of the state of a reward; None if it has none. Raises CallFailed if it is not plain JSON data."""
    if not has_state(reward):
        return None
    state = reward.state_dict()
    try:
        copy = parse_json(json.dumps(state, allow_nan=False), None)
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_plain(str(error)) from error
    if not isinstance(copy, dict):
        raise _not_plain(f"it is a {type(state).__name__}, not a dict")
    if copy != state:
        raise _not_plain("it changes when it is written as JSON and read again")
    return copy


def load_state(reward: Any, state: State) -> None:
    """Restore the state of a reward. Raises CallFailed if the reward has no `load_state_dict`."""
    method = getattr(reward, "load_state_dict", None)
    if method is None:
        raise CallFailed(
            "cannot restore its state", "add a method load_state_dict(state) to the reward", code="reward-state"
        )
    method(state)


def _not_plain(problem: str) -> CallFailed:
    problem = one_line(problem)
    return CallFailed(
        f"has a state that is not plain JSON data: {problem}",
        "state_dict must return a dict of str, finite numbers, bool, None, lists and dicts with str keys",
        code="reward-state",
        values={"problem": problem},
    )
