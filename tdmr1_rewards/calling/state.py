"""What a reward remembers from one batch to the next, as plain JSON data. Standard library only."""

from __future__ import annotations

import json
from typing import Any

from tdmr1_rewards.calling.result_checks import CallFailed

State = dict[str, Any]


def has_state(reward: Any) -> bool:
    """Whether a reward can tell what it remembers; what a torch module calls its state are its weights."""
    method = getattr(reward, "state_dict", None)
    return callable(method) and not (getattr(method, "__module__", None) or "").startswith("torch.")


def take_state(reward: Any) -> State | None:
    """A copy of what a reward remembers, None where it has no state. Raises CallFailed for what is not plain JSON."""
    if not has_state(reward):
        return None
    state = reward.state_dict()
    try:
        copy = json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_plain(str(error)) from error
    if not isinstance(copy, dict):
        raise _not_plain(f"it is a {type(state).__name__}, not a dict")
    if copy != state:
        raise _not_plain("it does not come back from JSON as it was")
    return copy


def give_state(reward: Any, state: State) -> None:
    """Let a reward remember again what it told. Raises CallFailed for one that can't."""
    method = getattr(reward, "load_state_dict", None)
    if method is None:
        raise CallFailed("can't take up a state", "give it a method load_state_dict(state)")
    method(state)


def _not_plain(why: str) -> CallFailed:
    return CallFailed(
        f"has a state that is not plain JSON data: {' '.join(why.split())}",
        "let state_dict answer a dict of texts, finite numbers, booleans, None, lists and dicts with texts as keys",
    )
