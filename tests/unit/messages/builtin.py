"""One example per error code that only the built-in rewards raise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def reward_weights(tmp_path: Path) -> None:
    from tdmr1_rewards.builtin.detection.checkpoints import load_detector

    load_detector(str(tmp_path), device="cpu", batch_size=1)


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "reward-weights": reward_weights,
}
