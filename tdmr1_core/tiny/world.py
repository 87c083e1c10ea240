"""The embedded world: small seeded images of colored shapes, with captions that are often wrong.

Images are 24 x 24 RGB. A *count* scene has one to four objects of one color and shape. A *pair* scene has two objects
of different colors in a spatial relation. Captions have a wrong number, a wrong side or swapped colors, each at a known
rate, like captions from the web. A model trained on them draws clean objects but follows prompts badly, which a reward
can correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

IMAGE_SIZE = 24
NUMBERS = ("one", "two", "three", "four")
SHAPES = ("circle", "square", "triangle")
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.14, 0.14),
    "green": (0.13, 0.62, 0.22),
    "blue": (0.14, 0.26, 0.86),
    "yellow": (0.95, 0.79, 0.10),
}
COLOURS = tuple(PALETTE)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)
ORDERED = ("left of", "above")
"""The relations in which the first object comes first when reading from left to right and from top to bottom."""

RADIUS_RANGE = (2.7, 3.6)
"""The range of the radius of objects, in pixels."""
MIN_GAP = 1.8
"""The minimal distance between the circumscribed circles of two objects, in pixels."""


@dataclass(frozen=True)
class Object:
    """One object. Center and radius are in pixels; y points down."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """The content of an image. `relation` is the position of the first object relative to the second, or None."""

    objects: tuple[Object, ...]
    relation: str | None = None


@dataclass(frozen=True)
class CaptionNoise:
    """Probabilities of errors and omissions in captions."""

    wrong_number: float = 0.52
    wrong_side: float = 0.40
    swapped_colours: float = 0.40
    omit_number: float = 0.12
    omit_colour: float = 0.10
    omit_shape: float = 0.10


PAIRS_NOISE = CaptionNoise(wrong_side=0.2, swapped_colours=0.12, omit_number=0.0)
"""The noise of the captions on which tiny-pairs-tdm was trained."""


@dataclass(frozen=True)
class CountCaption:
    """A caption of a count scene. Parts that are None are omitted ("red circles", "three shapes")."""

    number: int | None
    colour: str | None
    shape: str | None

    @property
    def text(self) -> str:
        """The text, such as "three red circles"."""
        noun = self.shape or "shape"
        plural = noun if self.number == 1 else noun + "s"
        words = [NUMBERS[self.number - 1] if self.number else None, self.colour, plural]
        return " ".join(word for word in words if word)

    @property
    def held_out(self) -> bool:
        """True if no model of this package was trained on this caption: one number of every color and shape."""
        if self.number is None or self.colour is None or self.shape is None:
            return False
        return (self.number + COLOURS.index(self.colour) + SHAPES.index(self.shape)) % len(NUMBERS) == 0

    @property
    def metadata(self) -> dict[str, Any]:
        """The request in the metadata format of GenEval."""
        request: dict[str, Any] = {"class": self.shape or "shape"}
        if self.number:
            request["count"] = self.number
        if self.colour:
            request["color"] = self.colour
        return {"tag": "counting", "include": [request], "exclude": [], "prompt": self.text}


@dataclass(frozen=True)
class PairCaption:
    """A caption of a pair scene: "a red circle left of a blue square", or "… and …" without a relation."""

    first: tuple[str, str]
    relation: str | None
    second: tuple[str, str]

    @classmethod
    def of(cls, scene: Scene) -> PairCaption:
        """The true caption of a scene of two objects."""
        a, b = scene.objects
        return cls((a.colour, a.shape), scene.relation, (b.colour, b.shape))

    @property
    def text(self) -> str:
        """The text, such as "a red circle above a blue square"."""
        return f"a {' '.join(self.first)} {self.relation or 'and'} a {' '.join(self.second)}"

    @property
    def ordered(self) -> PairCaption:
        """The same request with a relation of ORDERED: "a blue square left of a red circle" for "… right of …"."""
        if self.relation in ORDERED:
            return self
        return PairCaption(self.second, OPPOSITE[self.relation], self.first) if self.relation else self

    @property
    def held_out(self) -> bool:
        """True if no model of this package was trained on this caption: one relation in four of every pair."""
        if self.relation is None:
            return False
        position = sum(
            COLOURS.index(colour) + weight * SHAPES.index(shape)
            for weight, (colour, shape) in ((1, self.first), (2, self.second))
        )
        return (position + RELATIONS.index(self.relation)) % len(RELATIONS) == 0

    @property
    def metadata(self) -> dict[str, Any]:
        """The request in the metadata format of GenEval. The position is relative to the first entry of `include`."""
        (colour_a, shape_a), (colour_b, shape_b) = self.first, self.second
        include: list[dict[str, Any]] = [
            {"class": shape_b, "count": 1, "color": colour_b},
            {"class": shape_a, "count": 1, "color": colour_a},
        ]
        if self.relation:
            include[1]["position"] = [self.relation, 0]
        tag = "position" if self.relation else "color_attr"
        return {"tag": tag, "include": include, "exclude": [], "prompt": self.text}


def count_captions(*, held_out: bool | None = None) -> list[CountCaption]:
    """All captions with number, color and shape in a fixed order, or only those held out (True) or not (False)."""
    every = [CountCaption(n + 1, colour, shape) for n in range(4) for colour in COLOURS for shape in SHAPES]
    return [caption for caption in every if held_out is None or caption.held_out is held_out]


def pair_captions(relations: Sequence[str] = RELATIONS, *, held_out: bool | None = None) -> list[PairCaption]:
    """All captions of two objects of different colors in one of the relations, in a fixed order; see count_captions."""
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    every = [
        PairCaption(first, relation, second)
        for first in kinds
        for relation in relations
        for second in kinds
        if first[0] != second[0]
    ]
    return [caption for caption in every if held_out is None or caption.held_out is held_out]


def sample_scene(rng: np.random.Generator, pair_share: float = 0.3) -> Scene:
    """Draw a random scene: with probability `pair_share` a pair scene, otherwise a count scene."""
    if rng.random() >= pair_share:
        colour, shape = str(rng.choice(COLOURS)), str(rng.choice(SHAPES))
        number = int(rng.integers(1, len(NUMBERS) + 1))
        return Scene(tuple(Object(colour, shape, *place) for place in _places(rng, number)))
    first, second = (str(colour) for colour in rng.choice(COLOURS, size=2, replace=False))
    relation = str(rng.choice(RELATIONS))
    axis = 0 if relation in ("left of", "right of") else 1
    while True:
        a, b = _places(rng, 2)
        offset = np.array([b[0] - a[0], b[1] - a[1]])
        if abs(offset[axis]) < 1.4 * abs(offset[1 - axis]):
            continue
        if (offset[axis] > 0) != (relation in ("left of", "above")):
            a, b = b, a
        shapes = [str(shape) for shape in rng.choice(SHAPES, size=2)]
        return Scene((Object(first, shapes[0], *a), Object(second, shapes[1], *b)), relation)


def _places(rng: np.random.Generator, number: int) -> list[tuple[float, float, float]]:
    """Random centers and radii (x, y, radius) of `number` objects that touch neither each other nor the border."""
    while True:
        places: list[tuple[float, float, float]] = []
        for _ in range(60):
            radius = float(rng.uniform(*RADIUS_RANGE))
            x, y = (float(value) for value in rng.uniform(radius + 0.7, IMAGE_SIZE - radius - 0.7, size=2))
            if all(np.hypot(x - u, y - v) >= radius + other + MIN_GAP for u, v, other in places):
                places.append((x, y, radius))
                if len(places) == number:
                    return places


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Render a scene on a random light gray, uint8 (24, 24, 3), with edges antialiased from exact distances."""
    background = rng.uniform(0.80, 1.0)
    image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), background)
    ys, xs = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE] + 0.5
    for item in scene.objects:
        ink = np.clip(np.array(PALETTE[item.colour]) + rng.uniform(-0.04, 0.04, size=3), 0, 1)
        distance = _distance(item.shape, xs - item.x, ys - item.y, item.radius)
        coverage = np.clip(0.5 - distance, 0, 1)[..., None]
        image = image * (1 - coverage) + ink * coverage
    return np.round(image * 255).astype(np.uint8)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """The signed distance in pixels to the border of a shape at the origin; negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.89 * radius
    # An upright triangle: a horizontal side below, and two slanted sides through the apex.
    slope = np.hypot(2.0, 1.0)
    return np.maximum(y - 0.85 * radius, (2.0 * np.abs(x) - y - 1.1 * radius) / slope)


def caption(
    scene: Scene, rng: np.random.Generator, noise: CaptionNoise, *, ordered: bool = False
) -> CountCaption | PairCaption:
    """A noisy caption of a scene, with `ordered` relations on request. It is never a held-out caption."""
    if scene.relation is None:
        return _count_caption(scene, rng, noise)
    drawn = _pair_caption(scene, rng, noise)
    drawn = drawn.ordered if ordered else drawn
    return PairCaption(drawn.first, None, drawn.second) if drawn.held_out else drawn


def _count_caption(scene: Scene, rng: np.random.Generator, noise: CaptionNoise) -> CountCaption:
    number: int | None = len(scene.objects)
    if rng.random() < noise.wrong_number:
        number = int(rng.choice([n for n in range(1, len(NUMBERS) + 1) if n != number]))
    if rng.random() < noise.omit_number:
        number = None
    colour = None if rng.random() < noise.omit_colour else scene.objects[0].colour
    shape = None if rng.random() < noise.omit_shape else scene.objects[0].shape
    drawn = CountCaption(number, colour, shape)
    return CountCaption(None, colour, shape) if drawn.held_out else drawn


def _pair_caption(scene: Scene, rng: np.random.Generator, noise: CaptionNoise) -> PairCaption:
    a, b = scene.objects
    relation = scene.relation
    if relation is not None and rng.random() < noise.wrong_side:
        relation = OPPOSITE[relation]
    colours = (b.colour, a.colour) if rng.random() < noise.swapped_colours else (a.colour, b.colour)
    if rng.random() < noise.omit_number:
        relation = None
    return PairCaption((colours[0], a.shape), relation, (colours[1], b.shape))


def training_captions() -> list[CountCaption | PairCaption]:
    """All captions that occur in training, except the empty one, in a fixed order."""
    captions: list[CountCaption | PairCaption] = []
    for number in (None, 1, 2, 3, 4):
        for colour in (None, *COLOURS):
            for shape in (None, *SHAPES):
                captions.append(CountCaption(number, colour, shape))
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for first in kinds:
        for second in kinds:
            if first[0] != second[0]:
                captions += [PairCaption(first, relation, second) for relation in (None, *RELATIONS)]
    return [entry for entry in captions if not entry.held_out]


def vocabulary() -> list[str]:
    """All words of captions, sorted."""
    words = {word for entry in [*training_captions(), *count_captions()] for word in entry.text.split()}
    return sorted(words)


def make_dataset(
    size: int, seed: int, noise: CaptionNoise, pair_share: float = 0.3, *, ordered: bool = False
) -> tuple[np.ndarray, list[str], list[Scene]]:
    """N = `size` images, uint8 (N, 24, 24, 3), their noisy captions (with `ordered` relations on request), scenes."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, pair_share) for _ in range(size)]
    images = np.stack([render(scene, rng) for scene in scenes])
    return images, [caption(scene, rng, noise, ordered=ordered).text for scene in scenes], scenes
