"""Unrewarded metrics of images of the tiny world, measured by independent code (analysis by synthesis).

Each image is modelled as clean discs, squares and triangles on a flat background. The background is the median of
the border. The coverage of a pixel (0 to 1) is its distance from the background towards the nearest palette color.
Shapes of many radii are matched to the coverage greedily and then fitted with subpixel precision. No regions are
thresholded and no hue is computed, so an image that cheats a counter of colored blobs does not necessarily cheat
this code. An object is not found if its color is less than 60 % (large objects) to 75 % (small ones) of the way from
the background to a palette color. Its pixels then count as stray ink and as background noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdmr1_core.tiny import world

Array = NDArray[np.float32]

MAX_OBJECTS = 10
"""The maximum number of objects that are found in one image."""
MIN_EVIDENCE = 6.0
"""The minimum evidence for an object, in pixels of coverage: correctly minus wrongly covered."""
COARSE_RADII = (1.6, 2.2, 2.8, 3.4, 4.2, 5.2, 6.5, 8.0, 10.0)
"""Radii of the templates, in pixels. The fit that follows is continuous."""
PURITY = 0.6
"""0 to 1: the weight of a clean match compared with a large one. 0 prefers one large shape to several close ones."""
FIT_STEPS = 8
FIT_DIFFERENCE = 0.25
"""Half-width of the finite differences in the fit, in pixels."""
MAX_STEP = 0.5
"""The maximum change of a center coordinate or a radius in one step of the fit, in pixels."""
OBJECT_MARGIN = 1.5
"""A pixel belongs to an object up to this distance outside of its shape, in pixels."""
BACKGROUND_MARGIN = 2.0
"""A pixel is background from this distance outside of every shape, in pixels."""
STRAY_INK = 0.1
"""A pixel outside of all objects counts as ink from this difference to the background (0 to 1, largest channel)."""
CHUNK = 64
"""Images per chunk. It affects only memory and speed."""

_SIZE = world.IMAGE_SIZE
_YS, _XS = (grid.ravel().astype(np.float32) + np.float32(0.5) for grid in np.mgrid[0:_SIZE, 0:_SIZE])
_PALETTE = np.array(list(world.PALETTE.values()), np.float32)
_BORDER = (_XS < 1) | (_XS > _SIZE - 1) | (_YS < 1) | (_YS > _SIZE - 1)
# Of a shape with radius 1: the square root of its area, and the distance of its centroid below its center.
_EXTENT = {"circle": np.sqrt(np.pi), "square": 1.78, "triangle": 1.95 / np.sqrt(2)}
_SAG = {"circle": 0.0, "square": 0.0, "triangle": 0.2}


@dataclass(frozen=True)
class Found:
    """A found object: center and radius in pixels; `residual` is the root mean square error of its pixels (0 to 1)."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    residual: float


@dataclass(frozen=True)
class Analysis:
    """The model of one image. `crispness` and `background_noise` are defined in `measure_images`."""

    objects: tuple[Found, ...]
    crispness: float
    background_noise: float


def analyse(images: np.ndarray) -> list[Analysis]:
    """Model uint8 images (N, 24, 24, 3) as clean shapes on a flat background.

    Raises ValueError if the shape or the type is another one.
    """
    if images.dtype != np.uint8 or images.shape[1:] != (_SIZE, _SIZE, 3):
        raise ValueError(f"expected uint8 (N, {_SIZE}, {_SIZE}, 3), got {images.dtype} {images.shape}")
    flat = images.reshape(len(images), -1, 3)
    return [
        analysis
        for start in range(0, len(flat), CHUNK)
        for analysis in _analyse_chunk(flat[start : start + CHUNK].astype(np.float32) / np.float32(255))
    ]


def measure_images(
    images: np.ndarray, metadata: Sequence[Mapping[str, Any]], analyses: Sequence[Analysis] | None = None
) -> dict[str, np.ndarray]:
    """Compare images with their requests (metadata in GenEval's layout); each value is a float64 array (N,).

    A value is NaN where the metric is undefined: no object was found, or the request has no such condition.

    - `found`: number of objects, 0 to 10
    - `shape_right`, `colour_right`: fraction of the objects with a requested shape or color, 0 to 1
    - `count_right`: 1 if every requested kind of object has the requested number, else 0
    - `size`: mean radius in pixels; `size_error`: mean distance of the radius from the range of the world, in pixels
    - `crispness`: 1 - error of the reconstructed image / ink, both summed over objects and stray ink, 0 to 1;
      0 without objects
    - `background_noise`: standard deviation of the pixels away from objects, 0 to 0.5 (white is 1)
    - `position_x`, `position_y`: mean center in pixels, 0 to 24
    - `spread_x`, `spread_y`: standard deviation of the centers in pixels; NaN for fewer than two objects
    - `binding_right`: for a pair, 1 if the image shows exactly the two requested objects with their colors, else 0
    - `relation_right`: for a pair, 1 if each requested object is found once and in the requested relation, else 0

    Raises ValueError if there are more or fewer requests than images.
    """
    if len(images) != len(metadata):
        raise ValueError(f"{len(images)} images but {len(metadata)} requests")
    rows = [
        _measure_image(analysis, request["include"])
        for analysis, request in zip(analyses or analyse(images), metadata, strict=True)
    ]
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def diversity(
    images: np.ndarray, group_ids: np.ndarray, analyses: Sequence[Analysis] | None = None
) -> dict[str, np.ndarray]:
    """The differences between images of one group (one prompt); arrays (G,) in ascending order of `group`.

    A value is NaN where a group has fewer than two images, or no objects.

    - `group`: ids of the groups
    - `pixel_distance`: mean over pairs of images of the root mean square difference of pixels, 0 to 1
    - `position_spread`: root mean square distance of all objects from their mean center, in pixels
    - `layout_distance`: mean over pairs of images of the distance from an object to the nearest one in the other
      image, in pixels
    """
    centres = [
        np.array([(item.x, item.y) for item in analysis.objects]).reshape(-1, 2)
        for analysis in analyses or analyse(images)
    ]
    groups = np.unique(group_ids)
    measures: dict[str, list[float]] = {"pixel_distance": [], "position_spread": [], "layout_distance": []}
    for group in groups:
        members = np.flatnonzero(group_ids == group)
        points = np.concatenate([centres[i] for i in members])
        measures["pixel_distance"].append(pixel_distance(images[members]))
        measures["position_spread"].append(float(np.sqrt(points.var(axis=0).sum())) if len(points) else np.nan)
        measures["layout_distance"].append(_layout_distance([centres[i] for i in members if len(centres[i])]))
    return {"group": groups, **{name: np.array(values) for name, values in measures.items()}}


def _measure_image(analysis: Analysis, include: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    objects = analysis.objects
    shapes = {item["class"] for item in include if item["class"] in world.SHAPES}
    colours = {item["color"] for item in include if "color" in item}
    counts = [(item["count"], item.get("color")) for item in include if "count" in item]
    right = all(count == sum(colour in (None, item.colour) for item in objects) for count, colour in counts)
    radii = np.array([item.radius for item in objects])
    smallest, largest = world.RADIUS_RANGE
    xs, ys = np.array([item.x for item in objects]), np.array([item.y for item in objects])
    return {
        "found": float(len(objects)),
        "shape_right": _mean([item.shape in shapes for item in objects]) if shapes else np.nan,
        "colour_right": _mean([item.colour in colours for item in objects]) if colours else np.nan,
        "count_right": float(right) if counts else np.nan,
        "size": _mean(radii),
        "size_error": _mean(np.maximum(0, np.maximum(smallest - radii, radii - largest))),
        "crispness": analysis.crispness,
        "background_noise": analysis.background_noise,
        "position_x": _mean(xs),
        "position_y": _mean(ys),
        "spread_x": float(xs.std()) if len(xs) > 1 else np.nan,
        "spread_y": float(ys.std()) if len(ys) > 1 else np.nan,
        "binding_right": _binding(objects, include),
        "relation_right": _relation(objects, include),
    }


def _binding(objects: Sequence[Found], include: Sequence[Mapping[str, Any]]) -> float:
    """1 if the image shows exactly the requested objects, else 0; NaN if fewer than two kinds are requested."""
    if len(include) < 2:
        return np.nan
    requested = Counter((item["color"], item["class"]) for item in include)
    return float(Counter((item.colour, item.shape) for item in objects) == requested)


def _relation(objects: Sequence[Found], include: Sequence[Mapping[str, Any]]) -> float:
    """1 if the offset of the two objects is in the requested direction and largest along its axis, else 0.

    NaN if no relation is requested.
    """
    placed = [item for item in include if "position" in item]
    if not placed:
        return np.nan
    relation, base = placed[0]["position"]
    first, second = (
        [found for found in objects if (found.colour, found.shape) == (item["color"], item["class"])]
        for item in (placed[0], include[base])
    )
    if len(first) != 1 or len(second) != 1:
        return 0.0
    offset = (first[0].x - second[0].x, first[0].y - second[0].y)
    along, across = offset if relation in ("left of", "right of") else offset[::-1]
    return float((-along if relation in ("left of", "above") else along) > abs(across))


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else np.nan


def pixel_distance(images: np.ndarray) -> float:
    """Mean over pairs of images of the root mean square difference of pixels, 0 to 1; NaN for a single image."""
    if len(images) < 2:
        return np.nan
    flat = images.reshape(len(images), -1) / 255.0
    flat -= flat.mean(axis=0)
    gram = flat @ flat.T
    squared = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
    pairs = squared[np.triu_indices(len(images), k=1)]
    return float(np.sqrt(np.maximum(pairs, 0) / flat.shape[1]).mean())


def _layout_distance(centres: Sequence[np.ndarray]) -> float:
    """`centres`: one array (K, 2) per image, in pixels."""
    distances = []
    for i, first in enumerate(centres):
        for second in centres[i + 1 :]:
            between = np.hypot(*(first[:, None] - second).transpose(2, 0, 1))
            distances.append((between.min(axis=0).mean() + between.min(axis=1).mean()) / 2)
    return _mean(distances)


def _analyse_chunk(pixels: Array) -> list[Analysis]:
    """Analyse images (N, P, 3) with values from 0 to 1; P pixels, up to K objects per image."""
    background = np.median(pixels[:, _BORDER], axis=1)  # (N, 3)
    change = pixels - background[:, None]  # (N, P, 3)
    coverage = _coverage(change, background)  # (N, P)
    shapes, places = _match(coverage)
    distance = np.stack(
        [_distances(shapes[:, k], places[:, k]) for k in range(places.shape[1])] or [np.full_like(coverage, np.inf)],
        axis=1,
    )
    masks = np.clip(0.5 - distance, 0, 1)  # (N, K, P)
    inks = np.einsum("nkp,npc->nkc", masks, change) / np.maximum((masks**2).sum(axis=2), 1e-6)[..., None]  # (N, K, 3)
    synthesis = np.zeros_like(change)  # (N, P, 3)
    for k in range(masks.shape[1]):
        synthesis += masks[:, k, :, None] * (inks[:, k, None] - synthesis)
    error = change - synthesis
    return [_explain(*parts) for parts in zip(shapes, places, distance, inks, background, change, error, strict=True)]


def _explain(
    shapes: np.ndarray, places: Array, distance: Array, inks: Array, background: Array, change: Array, error: Array
) -> Analysis:
    objects = []
    for k, (x, y, radius) in enumerate(places.tolist()):
        if shapes[k] >= 0:
            colour = int(np.square(background + inks[k] - _PALETTE).sum(axis=1).argmin())
            residual = float(np.sqrt(np.square(error[distance[k] < OBJECT_MARGIN]).mean()))
            objects.append(Found(world.SHAPES[shapes[k]], world.COLOURS[colour], x, y, radius, residual))
    nearest = distance.min(axis=0)
    inked = (nearest < OBJECT_MARGIN) | (np.abs(change).max(axis=1) > STRAY_INK)
    crispness = 1 - float(np.abs(error[inked]).sum() / np.abs(change[inked]).sum()) if objects else 0.0
    away = change[nearest >= BACKGROUND_MARGIN]
    noise = float(np.sqrt(away.var(axis=0).mean())) if len(away) else np.nan
    return Analysis(tuple(objects), max(0.0, crispness), noise)


def _coverage(change: Array, background: Array) -> Array:
    """The fraction of the way from the background to the best matching palette color, for each pixel (N, P)."""
    towards = _PALETTE - background[:, None]
    # The minimum avoids a division by 0 if the background has a palette color. From gray, all lengths are larger.
    length = np.maximum(np.square(towards).sum(axis=2), 0.1)[:, None]
    along = change @ towards.transpose(0, 2, 1)
    fraction = np.clip(along / length, 0, 1)  # (N, P, colors)
    best = (fraction * (fraction * length - 2 * along)).argmin(axis=2)
    return np.take_along_axis(fraction, best[..., None], axis=2)[..., 0]


@cache
def _templates() -> tuple[Array, Array, Array, NDArray[np.int64], Array]:
    """All shapes with all radii at all pixels: masks (P, M); offset, scale and kinds (M,); places (M, 3).

    The merit of a template is `coverage @ masks - offset`: its evidence divided by `scale`, a power of its energy.
    """
    kinds, places, masks = [], [], []
    for kind, shape in enumerate(world.SHAPES):
        for radius in COARSE_RADII:
            at = np.stack([_XS, _YS, np.full_like(_XS, radius)], axis=1)
            masks.append(_render(shape, at))
            places.append(at)
            kinds.append(np.full(len(at), kind))
    mask = np.concatenate(masks)
    energy = np.square(mask).sum(axis=1)
    scale = energy**PURITY
    weighted = np.ascontiguousarray((2 * mask / scale[:, None]).T)
    return weighted, energy / scale, scale, np.concatenate(kinds), np.concatenate(places)


def _match(coverage: Array) -> tuple[NDArray[np.int64], Array]:
    """Find objects greedily until the evidence is too small.

    Returns kinds (N, K), where -1 is no object, and places (N, K, 3): x, y, radius.
    """
    masks, offset, scale, kinds, places = _templates()
    remaining = coverage.copy()  # (N, P)
    active = np.arange(len(remaining))
    found_kinds: list[NDArray[np.int64]] = []
    found_places: list[Array] = []
    while len(active) and len(found_kinds) < MAX_OBJECTS:
        merit = remaining[active] @ masks - offset
        best = merit.argmax(axis=1)
        # The fit can increase the evidence of the coarse grid, but hardly double it.
        hopeful = merit[np.arange(len(active)), best] * scale[best] >= MIN_EVIDENCE / 2
        active, best = active[hopeful], best[hopeful]
        fitted_kinds, fitted, evidence = _fit(remaining[active], kinds[best], places[best])
        active = active[evidence >= MIN_EVIDENCE]
        these_kinds, these = np.full(len(remaining), -1), np.zeros((len(remaining), 3), np.float32)
        these_kinds[active] = fitted_kinds[evidence >= MIN_EVIDENCE]
        these[active] = fitted[evidence >= MIN_EVIDENCE]
        remaining *= 1 - np.clip(0.5 - _distances(these_kinds, these), 0, 1)
        found_kinds.append(these_kinds)
        found_places.append(these)
    if not found_kinds:
        return np.zeros((len(remaining), 0), np.int64), np.zeros((len(remaining), 0, 3), np.float32)
    return np.stack(found_kinds, axis=1), np.stack(found_places, axis=1)


def _fit(coverage: Array, kinds: NDArray[np.int64], places: Array) -> tuple[NDArray[np.int64], Array, Array]:
    """Fit every shape from one start per image; returns kind (N,), place (N, 3) and evidence (N,) of the best."""
    extent = np.array([_EXTENT[shape] for shape in world.SHAPES], np.float32)
    sag = np.array([_SAG[shape] for shape in world.SHAPES], np.float32)
    fits = []
    for kind, shape in enumerate(world.SHAPES):
        start = places.copy()
        start[:, 2] *= extent[kinds] / extent[kind]
        start[:, 1] += sag[kinds] * places[:, 2] - sag[kind] * start[:, 2]
        fits.append(_fit_shape(coverage, shape, start))
    evidence = np.stack([gain for _, gain in fits])
    best = evidence.argmax(axis=0)
    every = np.arange(len(best))
    return best, np.stack([place for place, _ in fits])[best, every], evidence[best, every]


def _fit_shape(coverage: Array, shape: str, place: Array) -> tuple[Array, Array]:
    """Damped Gauss-Newton for center and radius; returns the place (N, 3) with the largest evidence (N,)."""
    best, most = place, np.full(len(place), -np.inf, np.float32)
    for step in range(FIT_STEPS + 1):
        mask = _render(shape, place)
        evidence = (mask * (2 * coverage - mask)).sum(axis=1)
        better = evidence > most
        best, most = np.where(better[:, None], place, best), np.maximum(evidence, most)
        if step < FIT_STEPS:
            shifts = FIT_DIFFERENCE * np.eye(3, dtype=np.float32)
            slopes = np.stack([_render(shape, place + shift) - _render(shape, place - shift) for shift in shifts], 1)
            slopes /= 2 * FIT_DIFFERENCE
            normal = slopes @ slopes.transpose(0, 2, 1) + 0.1 * np.eye(3, dtype=np.float32)
            move = np.linalg.solve(normal, slopes @ (coverage - mask)[..., None])[..., 0]
            place = place + np.clip(move, -MAX_STEP, MAX_STEP)
            place[:, 2] = np.maximum(place[:, 2], 1.0)
    return best, most


def _distances(kinds: NDArray[np.int64], places: Array) -> Array:
    """Distance (N, P) of each pixel from one shape per image, in pixels; infinite where the kind is -1."""
    distance = np.full((len(kinds), len(_XS)), np.inf, np.float32)
    for kind, shape in enumerate(world.SHAPES):
        chosen = kinds == kind
        distance[chosen] = _distance(shape, places[chosen])
    return distance


def _render(shape: str, places: Array) -> Array:
    """The coverage (N, P) of each pixel by a shape, 0 to 1."""
    coverage: Array = np.clip(0.5 - _distance(shape, places), 0, 1)
    return coverage


def _distance(shape: str, places: Array) -> Array:
    """The signed distance (N, P) of each pixel from a shape at places (N, 3), in pixels."""
    x, y, radius = places[:, :1], places[:, 1:2], places[:, 2:]
    return np.asarray(world._distance(shape, _XS - x, _YS - y, radius), np.float32)  # type: ignore[arg-type]
