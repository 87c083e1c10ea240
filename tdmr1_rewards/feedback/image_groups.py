"""The pictures of a folder, with their prompts, as groups to be judged.

Prompts come from `metadata.jsonl` or `metadata.csv` (Hugging Face's imagefolder: `file_name`, and `text` or `prompt`),
or else from the document that `tdmr1 sample --json` prints, saved in the folder as any .json file. Where there is
neither, every picture in the folder and below counts, without a prompt.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.records import NewItem

FEEDBACK = "feedback"
"""The folder of the answers, inside the folder that is judged."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
PROMPT_KEYS = ("text", "prompt")
GROUP_SIZE = 8
"""Pictures that can be compared side by side; a prompt with more has several groups."""


def group_images(folder: Path, *, shuffle: bool = True) -> list[list[NewItem]]:
    """Groups of pictures of one prompt each; shuffled the same way each time, or as listed.

    Raises Tdmr1Error where there is no picture, or metadata names one that isn't in the folder.
    """
    if not folder.is_dir():
        raise Tdmr1Error(f"{folder} is not a folder", "name a run folder or a folder of pictures")
    by_prompt: dict[str, list[Path]] = {}
    for path, prompt in _listed(folder):
        by_prompt.setdefault(prompt, []).append(path)
    if not by_prompt:
        raise Tdmr1Error(
            f"there are no pictures in {folder}",
            "draw some: `tdmr1 sample RUN --prompt … --output DIR`, then label DIR",
        )
    chance = random.Random(0)
    groups = []
    for prompt, paths in by_prompt.items():
        if shuffle:
            chance.shuffle(paths)
        parts = range(0, len(paths), GROUP_SIZE)
        groups += [[NewItem(path, prompt) for path in paths[start : start + GROUP_SIZE]] for start in parts]
    if shuffle:
        chance.shuffle(groups)
    return groups


def _listed(folder: Path) -> list[tuple[Path, str]]:
    """Picture files with their prompts."""
    for name, read in (("metadata.jsonl", _json_lines), ("metadata.csv", _csv_lines)):
        if (folder / name).is_file():
            return [_named(folder, row, f"{folder / name}, line {line}") for line, row in read(folder / name)]
    for path in sorted(folder.glob("*.json")):
        if images := _sampled(path):
            return [
                (_inside(folder, Path(image["file"]).name, str(path)), str(image.get("prompt", ""))) for image in images
            ]
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())
    return [(path, "") for path in found if not _apart(path.relative_to(folder))]


def _apart(path: Path) -> bool:
    """Whether a path is hidden, or part of the answers."""
    return path.parts[0] == FEEDBACK or any(part.startswith(".") for part in path.parts)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise Tdmr1Error(f"{path}, line {number}, is not JSON", "write one JSON object a line") from error


def _csv_lines(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    for row in reader:
        yield reader.line_num, row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Tdmr1Error(f"{path} can't be read as UTF-8 text", "save it as UTF-8") from error


def _named(folder: Path, row: Any, where: str) -> tuple[Path, str]:
    name = row.get("file_name") if isinstance(row, Mapping) else None
    if not isinstance(name, str) or not name:
        raise Tdmr1Error(f"{where}, has no file_name", 'write {"file_name": "a.png", "text": "a cat"}')
    prompts = [row[key] for key in PROMPT_KEYS if isinstance(row.get(key), str)]
    return _inside(folder, name, where), prompts[0] if prompts else ""


def _inside(folder: Path, name: str, where: str) -> Path:
    """A picture of the folder. Raises Tdmr1Error for one that lies elsewhere, or isn't there."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Tdmr1Error(f"{where}, names {name!r}, which lies outside the folder", "name pictures of the folder only")
    if not path.is_file():
        raise Tdmr1Error(f"{where}, names {name!r}, which is not there", "name pictures of the folder only")
    return path


def _sampled(path: Path) -> Sequence[Mapping[str, Any]]:
    """The images of a document of `tdmr1 sample --json`; none for any other file."""
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        return images if all(isinstance(image["file"], str) for image in images) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
