"""Collects the images of a folder and their prompts, in groups for labelling.

The list of images comes from the first of these that exists:

1. `metadata.jsonl` or `metadata.csv` (Hugging Face imagefolder: `file_name`, and `text` or `prompt`)
2. a .json file in the folder with the output of `tdmr1 sample --json`
3. all images in the folder and its subfolders, without prompts
"""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.records import NewItem
from tdmr1_rewards.texts.documents import MOST_BYTES, parse_json, read_file, read_json

FEEDBACK = "feedback"
"""Name of the feedback folder, inside a run folder or a folder of images."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PROMPT_KEYS = ("text", "prompt")
GROUP_SIZE = 8
"""Most images in a group. The images of one prompt form several groups if there are more."""


def group_images(folder: Path, *, shuffle: bool = True) -> list[list[NewItem]]:
    """The images of a folder in groups; all images of a group have the same prompt.

    The order is random but the same for each call, or as listed if `shuffle` is false. Raises Tdmr1Error if the folder
    has no images, or if its metadata cannot be read or names a file that is not in the folder.
    """
    if not folder.is_dir():
        raise Tdmr1Error(
            f"{folder} is not a folder",
            "name a run folder or a folder of images",
            code="file-missing",
            values={"path": str(folder)},
        )
    by_prompt: dict[str, list[Path]] = {}
    for path, prompt in _images_with_prompts(folder):
        # A text with surrogates that are no pairs, which JSON can have, cannot be stored.
        by_prompt.setdefault(prompt.encode("utf-8", "replace").decode(), []).append(path)
    if not by_prompt:
        raise Tdmr1Error(
            f"the folder {folder} contains no images",
            "generate images with `tdmr1 sample RUN --prompt … --output DIR`, then run `tdmr1 label DIR`",
            code="feedback-empty",
            values={"path": str(folder)},
        )
    rng = random.Random(0)
    groups = []
    for prompt, paths in by_prompt.items():
        if shuffle:
            rng.shuffle(paths)
        starts = range(0, len(paths), GROUP_SIZE)
        groups += [[NewItem(path, prompt) for path in paths[start : start + GROUP_SIZE]] for start in starts]
    if shuffle:
        rng.shuffle(groups)
    return groups


def _images_with_prompts(folder: Path) -> list[tuple[Path, str]]:
    """Image files with their prompts."""
    for name, read in (("metadata.jsonl", _json_rows), ("metadata.csv", _csv_rows)):
        if (folder / name).is_file():
            return [_row_image(folder, row, folder / name, line) for line, row in read(folder / name)]
    for path in sorted(folder.glob("*.json")):
        if images := _sample_document(path):
            return [(_inside(folder, Path(image["file"]).name, path), str(image.get("prompt", ""))) for image in images]
    return [(Path(path), "") for path in sorted(_image_files(folder), key=lambda path: path.split(os.sep))]


def _image_files(folder: Path) -> Iterator[str]:
    """Paths of the images in a folder and its subfolders, except hidden ones and those of the feedback folder."""
    for parent, folders, files in os.walk(folder):
        ignored = [FEEDBACK] if Path(parent) == folder else []
        folders[:] = [name for name in folders if name not in ignored and not name.startswith(".")]
        for name in files:
            path = os.path.join(parent, name)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and os.path.isfile(path):
                yield path


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise Tdmr1Error(
                    f"line {number} of {path} is not valid JSON",
                    "write one JSON object per line",
                    code="file-unreadable",
                    values={"path": str(path), "line": number},
                ) from error


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise Tdmr1Error(
            f"line {reader.line_num} of {path} is not valid CSV: {error}",
            "write one line per image, with the columns file_name and text",
            code="file-unreadable",
            values={"path": str(path), "line": reader.line_num},
        ) from error


def _text(path: Path) -> str:
    try:
        return read_file(path, MOST_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise Tdmr1Error(
            f"cannot read {path} as UTF-8 text",
            "save the file as UTF-8",
            code="file-unreadable",
            values={"path": str(path), "encoding": "UTF-8"},
        ) from error


def _row_image(folder: Path, row: Any, metadata: Path, line: int) -> tuple[Path, str]:
    """The image file and prompt of a metadata row."""
    name = row.get("file_name") if isinstance(row, Mapping) else None
    if not isinstance(name, str) or not name:
        raise Tdmr1Error(
            f"line {line} of {metadata} has no file_name",
            'write a line like {"file_name": "a.png", "text": "a cat"}',
            code="file-unreadable",
            values={"path": str(metadata), "line": line, "missing": "file_name"},
        )
    prompts = [row[key] for key in PROMPT_KEYS if isinstance(row.get(key), str)]
    return _inside(folder, name, metadata, line), prompts[0] if prompts else ""


def _inside(folder: Path, name: str, source: Path, line: int | None = None) -> Path:
    """The image `name` of the folder, as named by `source`. Raises Tdmr1Error if it is outside or missing."""
    path = folder / name
    where = str(source) if line is None else f"line {line} of {source}"
    values = {"path": str(source), "line": line, "file_name": name}
    try:
        inside, exists = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a null character
        inside, exists = True, False
    if not inside:
        raise Tdmr1Error(
            f"{where} names {name!r}, which is outside the folder",
            "name only images inside the folder",
            code="feedback-item",
            values=values,
        )
    if not exists:
        raise Tdmr1Error(
            f"{where} names {name!r}, which does not exist",
            "name only images inside the folder",
            code="file-missing",
            values=values,
        )
    return path


def _sample_document(path: Path) -> Sequence[Mapping[str, Any]]:
    """The images in the output of `tdmr1 sample --json`; empty for any other file."""
    try:
        images = read_json(path)["images"]
        return images if all(isinstance(image["file"], str) for image in images) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
