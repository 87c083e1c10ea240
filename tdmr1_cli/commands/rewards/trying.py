"""`tdmr1 rewards try`: what a reward says of pictures of yours."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.commands.rewards.common import DeviceOption, OptionsOption, SourceArgument, build
from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import emit_json, message, table
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    import numpy as np

    from tdmr1_rewards.scoring.single_reward import ImageScore

BOXES = "boxes"


def command(
    source: SourceArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Pictures to be judged.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="What was asked for: one for all, or one for each picture."),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option("--metadata", metavar="JSON", help="What a prompt set would know of the prompt.")
    ] = None,
    option: OptionsOption = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Keep copies with the boxes drawn that it tells of.")
    ] = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Score pictures, with what the reward says of each."""
    known = _metadata(metadata)
    prompts = _prompts(prompt or [], known, len(images))
    pixels = [_read(path) for path in images]
    built = build(source, option or ())
    from tdmr1_rewards.scoring.single_reward import ImageToScore, SingleReward

    pictures = [ImageToScore(image, text, known) for image, text in zip(pixels, prompts, strict=True)]
    with SingleReward(built.found.spec, built.reward, built.found.provenance, device) as judge:
        verdicts = judge(pictures)
    saved = _save(save, images, pixels, verdicts)
    if json:
        emit_json({"reward": built.found.spec.name, "images": _documents(images, prompts, verdicts, saved)})
        return
    rows = [
        [str(path), "cannot judge" if verdict.score is None else f"{verdict.score:.4g}", _told(verdict.details)]
        for path, verdict in zip(images, verdicts, strict=True)
    ]
    table(["image", built.found.spec.name, "details"], rows)
    _say_saved(save, verdicts, saved)


def _metadata(text: str | None) -> dict[str, Any]:
    try:
        metadata = json_format.loads(text or "{}")
    except ValueError as error:
        hint = """write it like '{"include": [{"count": 2}]}'"""
        raise Tdmr1Error(f"--metadata is not JSON: {error}", hint) from error
    if not isinstance(metadata, dict):
        raise Tdmr1Error(f"--metadata is a {type(metadata).__name__}, not an object", "write it in curly braces")
    return metadata


def _prompts(given: Sequence[str], metadata: Mapping[str, Any], count: int) -> list[str]:
    prompts = list(given) or [str(metadata.get("prompt", ""))]
    if len(prompts) == 1:
        return prompts * count
    if len(prompts) != count:
        raise Tdmr1Error(f"there are {len(prompts)} prompts for {count} pictures", "give one for all, or one for each")
    return prompts


def _read(path: Path) -> np.ndarray:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        return np.array(Image.open(path).convert("RGB"))
    except UnidentifiedImageError as error:
        raise Tdmr1Error(f"{path} is not a picture that can be read", "PNG, JPEG and WebP are") from error
    except OSError as error:
        raise Tdmr1Error(f"the picture {path} can't be read: {error.strerror or error}", "check the path") from error


def _save(
    folder: Path | None, images: Sequence[Path], pixels: Sequence[np.ndarray], verdicts: Sequence[ImageScore]
) -> list[Path | None]:
    """Copies of the pictures that boxes were told of; where each one is."""
    from tdmr1_cli.commands.rewards.boxes import draw_boxes

    saved: list[Path | None] = []
    for index, (path, image, verdict) in enumerate(zip(images, pixels, verdicts, strict=True)):
        boxes = verdict.details.get(BOXES)
        if folder is None or not boxes:
            saved.append(None)
            continue
        target = folder / f"{index:03d}-{path.stem}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            draw_boxes(image, boxes).save(target)
        except OSError as error:
            raise Tdmr1Error(f"{target} can't be written: {error.strerror}", "choose another --save") from error
        saved.append(target)
    return saved


def _say_saved(folder: Path | None, verdicts: Sequence[ImageScore], saved: Sequence[Path | None]) -> None:
    for target in filter(None, saved):
        message(f"saved {target}")
    has_boxes = any(verdict.details.get(BOXES) for verdict in verdicts)
    if folder is not None and not has_boxes:
        message(f"nothing is saved in {folder}: the reward told of no boxes")
    if folder is None and has_boxes:
        message("--save DIR keeps copies with the boxes drawn")


def _told(details: Mapping[str, Any]) -> str:
    """Details in one cell: texts that were read in quotes, boxes only counted."""
    parts = []
    for name, value in details.items():
        if name == BOXES and isinstance(value, list):
            labels = ", ".join(str(box.get("label", "?")) for box in value if isinstance(box, Mapping))
            parts.append(f"boxes: {len(value)}" + (f" ({labels})" if labels else ""))
        else:
            told = json_format.dumps(value, ensure_ascii=False, default=str)
            parts.append(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {told}")
    return "; ".join(parts)


def _documents(
    images: Sequence[Path], prompts: Sequence[str], verdicts: Sequence[ImageScore], saved: Sequence[Path | None]
) -> list[dict[str, Any]]:
    return [
        {"image": str(path), "prompt": prompt, "score": verdict.score, "details": verdict.details, "saved": target}
        for path, prompt, verdict, target in zip(images, prompts, verdicts, saved, strict=True)
    ]
