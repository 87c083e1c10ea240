"""Good and bad examples for the built-in rewards, drawn by this code, so nothing is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdmr1_rewards.api import RewardExample

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 256
"""Side of an image in pixels."""


def shop_signs() -> list[RewardExample]:
    """Shop signs with the requested text, with another text, and without text."""
    examples = []
    for word, other in (("OPEN", "CLOSED"), ("Fresh Bread", "Old Shoes"), ("Gate 42", "Platform")):
        prompt = f'A shop sign that says "{word}"'
        examples += [
            RewardExample(image=draw_text(word), prompt=prompt, good=True),
            RewardExample(image=draw_text(other), prompt=prompt, good=False),
            RewardExample(image=draw_text(""), prompt=prompt, good=False),
        ]
    return examples


def smooth_and_noisy() -> list[RewardExample]:
    """A plain area and a smooth gradient, whose JPEG files are small, and noise, whose file is large."""
    from PIL import Image

    prompt = "an image"
    plain = Image.new("RGB", (SIZE, SIZE), (90, 140, 200))
    gradient = Image.linear_gradient("L").resize((SIZE, SIZE)).convert("RGB")
    noise = Image.effect_noise((SIZE, SIZE), 120).convert("RGB")
    return [
        RewardExample(image=plain, prompt=prompt, good=True),
        RewardExample(image=gradient, prompt=prompt, good=True),
        RewardExample(image=noise, prompt=prompt, good=False),
    ]


def shapes_with_prompts() -> list[RewardExample]:
    """Shapes with a prompt that describes them, and with a prompt that describes another shape."""
    circle, square = _draw_shape("ellipse", (220, 30, 30)), _draw_shape("rectangle", (30, 60, 220))
    circle_prompt, square_prompt = "a red circle on a white background", "a blue square on a white background"
    return [
        RewardExample(image=circle, prompt=circle_prompt, good=True),
        RewardExample(image=square, prompt=square_prompt, good=True),
        RewardExample(image=square, prompt=circle_prompt, good=False),
        RewardExample(image=circle, prompt=square_prompt, good=False),
    ]


def draw_text(text: str) -> Image:
    """Dark text in the middle of a light RGB image, SIZE pixels wide and SIZE / 2 high."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (SIZE, SIZE // 2), (245, 245, 240))
    center = (SIZE / 2, SIZE / 4)
    ImageDraw.Draw(image).text(center, text, fill=(20, 20, 40), font=ImageFont.load_default(34), anchor="mm")
    return image


def _draw_shape(shape: str, colour: tuple[int, int, int]) -> Image:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIZE, SIZE), "white")
    corners = (SIZE // 4, SIZE // 4, 3 * SIZE // 4, 3 * SIZE // 4)
    getattr(ImageDraw.Draw(image), shape)(corners, fill=colour)
    return image
