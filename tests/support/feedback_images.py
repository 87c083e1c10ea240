"""Small images of different colors, and their use in a feedback store."""

from __future__ import annotations

import numpy as np

from tdmr1_rewards.feedback.store import NewItem


def solid_image(number: int, size: int = 4) -> np.ndarray:
    """An image, uint8 (size, size, 3), whose color is unique for each number below 65,536."""
    return np.full((size, size, 3), (number % 256, number // 256, 7), np.uint8)


def new_items(*numbers: int, prompt: str = "a cat") -> list[NewItem]:
    return [NewItem(solid_image(number), prompt) for number in numbers]


def open_round(store, *groups, **settings):
    """Open a round of images. A group is a sequence of image numbers."""
    settings = {"run": "r", "step": 1} | settings
    return store.open_round("title", [new_items(*group) for group in groups], **settings)


def offered(store, person, limit=100, **settings):
    """The numbers of the images that the store offers to a person, in order."""
    from PIL import Image

    offers = store.next_items(person, limit, **settings)
    pixels = [Image.open(store.image_path(offer.item.hash)).getpixel((0, 0)) for offer in offers]
    return [red + 256 * green for red, green, _ in pixels]
