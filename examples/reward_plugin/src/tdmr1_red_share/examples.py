"""Pictures that the reward should like, and some that it should not: `tdmr1 rewards check` compares them."""

import numpy as np

from tdmr1_rewards import RewardExample


def examples() -> list[RewardExample]:
    """A red disc is good, one of another colour is bad."""
    discs = [((220, 30, 30), True), ((180, 40, 60), True), ((30, 160, 60), False), ((40, 60, 220), False)]
    return [RewardExample(image=disc(colour), prompt="a disc", good=good) for colour, good in discs]


def disc(colour: tuple[int, int, int]) -> np.ndarray:
    """A disc of a colour (0 to 255 each) on grey: uint8 (64, 64, 3)."""
    rows, columns = np.mgrid[:64, :64]
    image = np.full((64, 64, 3), 128, np.uint8)
    image[(columns - 32) ** 2 + (rows - 32) ** 2 < 400] = colour
    return image
