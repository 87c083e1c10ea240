"""Good and bad examples; `tdmr1 rewards check` tests that the good ones get higher scores."""

import numpy as np

from tdmr1_rewards import RewardExample


def examples() -> list[RewardExample]:
    """Red discs are good, discs of other colors are bad."""
    discs = [((220, 30, 30), True), ((180, 40, 60), True), ((30, 160, 60), False), ((40, 60, 220), False)]
    return [RewardExample(image=disc(color), prompt="a disc", good=good) for color, good in discs]


def disc(color: tuple[int, int, int]) -> np.ndarray:
    """A disc of an RGB color (0 to 255) on gray, uint8 (64, 64, 3)."""
    rows, columns = np.mgrid[:64, :64]
    image = np.full((64, 64, 3), 128, np.uint8)
    image[(columns - 32) ** 2 + (rows - 32) ** 2 < 400] = color
    return image
