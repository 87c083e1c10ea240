"""The calls of a reward, the same in a thread of this process and in another process. Standard library only."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from tdmr1_rewards.calling.event_loop import EventLoop
from tdmr1_rewards.calling.torch_modules import is_module, prepare_modules, without_gradients

NOTE = "tdmr1_note"
"""The attribute of a reward with a sentence for users after `setup`."""


def set_up(reward: Any, device: str, loop: EventLoop) -> str | None:
    """Call the reward's `setup`. Without one, put its torch modules in evaluation mode; they stay where they are.

    Returns the `note` of a reward of another toolkit: in which format it receives images, unless that was known before.
    """
    if hasattr(reward, "setup"):
        loop.call(reward.setup, device)
    else:
        prepare_modules(reward)
    note = getattr(reward, NOTE, None)
    return note if isinstance(note, str) else None


def score(reward: Any, batch: Any, loop: EventLoop) -> Any:
    """What the reward returns for a batch. Gradients are disabled if the reward itself is a torch module."""
    with without_gradients() if is_module(reward) else nullcontext():
        return loop.call(reward, batch)


def close(reward: Any, loop: EventLoop) -> None:
    """Call the reward's `close`, if it has one."""
    if hasattr(reward, "close"):
        loop.call(reward.close)
