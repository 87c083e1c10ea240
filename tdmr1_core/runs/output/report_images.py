"""The images of a report as WebP of limited size: grids over time, before and after, best and worst of a group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from tdmr1_core.durable_files import MALFORMED
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.runs.jsonl import score, whole_number
from tdmr1_core.runs.output.group_images import BEST, WORST
from tdmr1_core.runs.output.image_grids import cell_boxes, webp
from tdmr1_core.runs.output.previews import BEFORE_AFTER, SAMPLES
from tdmr1_rewards.calling.image_files import read_image
from tdmr1_rewards.texts.documents import MOST_BYTES, read_json

MOST_GRIDS, MOST_GROUPS = 40, 6
"""Largest number of grids and of groups in a report of one or several runs."""
PAIRS_PER_PROMPT = 2
GRID_BYTES, PAIR_BYTES, GROUP_BYTES = 1_500_000, 450_000, 450_000
"""Bytes of all grids, of all pairs and of all images of groups in a report."""
MOST_COLUMNS = 64
GRID_WIDTH, IMAGE_WIDTH = 1024, 384
"""Largest width of a grid and of a single image, in pixels."""
QUALITY, SMALLER = 82, 60
SMALL = 640 * 480
"""Pixels of an image that may be stored without loss."""
SMALLEST = 64
"""Smallest width of an image in pixels: it is stored at this size even if it exceeds its bytes."""
UNREADABLE = (OSError, Tdmr1Error, *MALFORMED)
"""What reading an image or its JSON file raises if the file is damaged."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Frame:
    """A grid after iteration `step`: its file, the prompts of its rows, and the scores of its images by reward.

    `boxes` are the places of the images in the file. Grids of earlier versions have only a file.
    """

    step: int
    file: Path
    prompts: tuple[str, ...] = ()
    columns: int = 1
    boxes: tuple[Box, ...] = ()
    scores: dict[str, list[float | None]] = field(default_factory=dict)

    def row_means(self) -> dict[str, list[float | None]]:
        """The mean score of each row by reward; None for a row without scores."""
        starts = range(0, len(self.boxes), self.columns)
        rows = {name: [values[i : i + self.columns] for i in starts] for name, values in self.scores.items()}
        return {name: [mean(row) for row in parts] for name, parts in rows.items()}


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def frames_of(folder: Path) -> list[Frame]:
    """The grids of a run folder by iteration."""
    found = []
    for file in sorted((folder / SAMPLES).glob("step-*.png")):
        step = file.stem.removeprefix("step-")
        if step.isascii() and step.isdigit():
            found.append(_frame(int(step), file))
    return sorted(found, key=lambda frame: frame.step)


def _frame(step: int, file: Path) -> Frame:
    try:
        row = read_json(file.with_suffix(".json"), MOST_BYTES)
        prompts, columns = tuple(map(str, row["prompts"])), whole_number(row["columns"])
        if not 1 <= columns <= MOST_COLUMNS:
            raise ValueError(f"{columns} columns")
        boxes = cell_boxes(len(prompts) * columns, whole_number(row["height"]), whole_number(row["width"]), columns)
        scores = {str(name): [score(value) for value in values] for name, values in row["scores"].items()}
        if any(len(values) != len(boxes) for values in scores.values()):
            raise ValueError("not one score for each image")
        return Frame(step, file, prompts, columns, tuple(boxes), scores)
    except (OSError, ZeroDivisionError, *MALFORMED):
        return Frame(step, file)


def spread_over(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0 to `count` - 1, evenly spread, with the first and the last one."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count - 1]
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


@dataclass
class Images:
    """The encoded images of a page. Each gets a number, by which the data of the page names it."""

    encoded: list[bytes] = field(default_factory=list)

    def add(self, file: Path, most_bytes: int, most_width: int, box: Box | None = None) -> dict[str, int] | None:
        """Add an image file or a part of it; its number, width and height in pixels. None for an unreadable file."""
        try:
            stamp = file.stat().st_mtime_ns
            content, width, height = _encode(file, stamp, most_bytes, most_width, box)
        except UNREADABLE:
            return None
        self.encoded.append(content)
        return {"image": len(self.encoded) - 1, "width": width, "height": height}


@lru_cache(maxsize=256)
def _encode(file: Path, stamp: int, most_bytes: int, most_width: int, box: Box | None) -> tuple[bytes, int, int]:
    """The WebP content, width and height of an image. `stamp` is the time of the file, so that a new one is read."""
    opened = _open(file, stamp)
    if box is not None and (box[2] > opened.width or box[3] > opened.height):
        raise ValueError(f"{file} is smaller than its description says")
    part = opened if box is None else opened.crop(box)
    return shrink(part, most_bytes, most_width)


@lru_cache(maxsize=2)
def _open(file: Path, stamp: int) -> Image.Image:
    """A decoded image file; the pairs of a grid are parts of the same one."""
    return read_image(file)


def shrink(image: Image.Image, most_bytes: int, most_width: int) -> tuple[bytes, int, int]:
    """An image as WebP of at most `most_bytes`, with its width and height; smaller and with loss only if necessary."""
    if image.width > most_width:
        image = image.resize((most_width, max(1, round(image.height * most_width / image.width))))
    qualities = [*([None] if image.width * image.height <= SMALL else []), QUALITY, SMALLER]
    while True:
        for quality in qualities:
            content = webp(image, quality)
            if len(content) <= most_bytes:
                return content, image.width, image.height
        if image.width <= SMALLEST:
            return content, image.width, image.height
        factor = max(0.25, min(0.85, math.sqrt(most_bytes / len(content))))
        image = image.resize((max(SMALLEST, int(image.width * factor)), max(1, int(image.height * factor))))
        qualities = [SMALLER]


def grids_data(frames: Sequence[Frame], images: Images, runs: int) -> dict[str, Any] | None:
    """The grids of one of `runs` runs: prompts, and each frame with the mean scores of its rows."""
    chosen = [frames[index] for index in spread_over(len(frames), max(2, MOST_GRIDS // runs))]
    most = GRID_BYTES // runs // max(1, len(chosen))
    found = []
    for frame in chosen:
        if placed := images.add(frame.file, most, GRID_WIDTH):
            found.append({"step": frame.step, **placed, "scores": frame.row_means()})
    prompts = frames[-1].prompts if frames else ()
    return {"prompts": list(prompts), "frames": found, "all": len(frames)} if found else None


def pairs_data(folder: Path, frames: Sequence[Frame], images: Images, runs: int) -> list[dict[str, Any]]:
    """Images of the first and the last grid with the same prompt and noise, each with its scores.

    A run without grids, or with those of earlier versions, has its image `before_after.png` in their place.
    """
    first, last = (frames[0], frames[-1]) if frames else (None, None)
    if first is None or last is None or not first.boxes or first.prompts != last.prompts or first.step == last.step:
        whole = images.add(folder / BEFORE_AFTER, PAIR_BYTES // runs, GRID_WIDTH)
        return [{"whole": whole}] if whole else []
    per_prompt = min(PAIRS_PER_PROMPT, first.columns)
    wanted = [row * first.columns + column for row in range(len(first.prompts)) for column in range(per_prompt)]
    most = PAIR_BYTES // runs // (2 * len(wanted))
    found = []
    for index in wanted:
        sides = [_side(frame, index, most, images) for frame in (first, last)]
        if all(sides):
            found.append({"prompt": first.prompts[index // first.columns], "before": sides[0], "after": sides[1]})
    return found


def _side(frame: Frame, index: int, most: int, images: Images) -> dict[str, Any] | None:
    placed = images.add(frame.file, most, IMAGE_WIDTH, frame.boxes[index])
    scores = {name: values[index] for name, values in frame.scores.items()}
    return placed and {**placed, "step": frame.step, "scores": scores}


def groups_data(folder: Path, images: Images, runs: int) -> list[dict[str, Any]]:
    """The best and the worst image of a group, of iterations spread over the run."""
    files = sorted((folder / SAMPLES).glob("group-*.json"))
    chosen = [files[index] for index in spread_over(len(files), max(1, MOST_GROUPS // runs))]
    most = GROUP_BYTES // runs // max(1, 2 * len(chosen))
    found = [_group(file, most, images) for file in chosen]
    return [group for group in found if group is not None]


def _group(file: Path, most: int, images: Images) -> dict[str, Any] | None:
    try:
        row = read_json(file, MOST_BYTES)
        group = {
            "step": whole_number(row["step"]),
            "prompt": str(row["prompt"]),
            "rewards": [score(value) for value in row["rewards"]],
        }
        scores = {
            word: {str(name): score(value) for name, value in row["scores"][word].items()} for word in (BEST, WORST)
        }
    except (OSError, *MALFORMED):
        return None
    for word in (BEST, WORST):
        placed = images.add(file.with_name(f"{file.stem}-{word}.png"), most, IMAGE_WIDTH)
        if placed is None:
            return None
        group[word] = {**placed, "scores": scores[word]}
    return group
