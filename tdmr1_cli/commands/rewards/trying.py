"""`tdmr1 rewards try`: scores your own images with a reward."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.commands.rewards.common import DeviceOption, OptionsOption, PythonOption, SourceArgument, build
from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import emit_json, message, table
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    import numpy as np

    from tdmr1_rewards.scoring.single_reward import ImageScore, ImageToScore

BOXES = "boxes"


def command(
    source: SourceArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files to score.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="Prompt of the images: one for all, or one for each image."),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option("--metadata", metavar="JSON", help="Metadata of the prompts, as in a prompt file.")
    ] = None,
    option: OptionsOption = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="DIR", help="Save copies of the images with the boxes that the reward returns."),
    ] = None,
    device: DeviceOption = "cpu",
    python: PythonOption = None,
    json: JsonOption = False,
) -> None:
    """Score images, and print the details that the reward returns for each.

    Images with the same prompt are a group, for rewards that compare images.
    """
    known = _metadata(metadata)
    prompts = _prompts(prompt or [], known, len(images))
    pixels = [_read(path) for path in images]
    built = build(source, option or (), python)
    from tdmr1_rewards.scoring.single_reward import ImageToScore, SingleReward

    groups = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
    to_score = [ImageToScore(image, text, known, groups[text]) for image, text in zip(pixels, prompts, strict=True)]
    with SingleReward(built.found.spec, built.reward, built.found.provenance, device, built.python) as reward:
        if reward.groupwise:
            _check_groups(built.found.spec.name, to_score)
        results = reward(to_score)
    saved = _save(save, images, pixels, results)
    if json:
        emit_json({"reward": built.found.spec.name, "images": _documents(images, prompts, results, saved)})
        return
    rows = [
        [str(path), "no score" if result.score is None else f"{result.score:.4g}", _details_cell(result.details)]
        for path, result in zip(images, results, strict=True)
    ]
    table(["image", built.found.spec.name, "details"], rows)
    _report_saved(save, results, saved)


def _metadata(text: str | None) -> dict[str, Any]:
    hint = """write it like '{"include": [{"count": 2}]}'"""
    try:
        metadata = json_format.loads(text or "{}")
    except ValueError as error:
        raise Tdmr1Error(
            f"--metadata is not valid JSON: {error}",
            hint,
            code="argument-invalid",
            values={"argument": "--metadata", "value": text},
        ) from error
    if not isinstance(metadata, dict):
        raise Tdmr1Error(
            f"--metadata must be a JSON object, not a {type(metadata).__name__}",
            hint,
            code="argument-invalid",
            values={"argument": "--metadata", "value": text},
        )
    return metadata


def _prompts(given: Sequence[str], metadata: Mapping[str, Any], count: int) -> list[str]:
    prompts = list(given) or [str(metadata.get("prompt", ""))]
    if len(prompts) == 1:
        return prompts * count
    if len(prompts) != count:
        raise Tdmr1Error(
            f"there are {len(prompts)} prompts for {count} images",
            "use --prompt once for all images, or once for each image",
            code="argument-invalid",
            values={"argument": "--prompt", "prompts": len(prompts), "images": count},
        )
    return prompts


def _check_groups(reward: str, images: Sequence[ImageToScore]) -> None:
    """Raise Tdmr1Error if a prompt has one image, or images of several sizes, which cannot be in one batch."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for image in images:
        shapes.setdefault(image.prompt, []).append(image.image.shape)
    for prompt, found in shapes.items():
        different = len(set(found)) > 1
        if len(found) > 1 and not different:
            continue
        what = "has images of different sizes" if different else "has one image"
        raise Tdmr1Error(
            f"reward {reward!r} compares the images of a prompt, but the prompt {prompt!r} {what}",
            "give several images of one size for each prompt; without --prompt, all images have the same one",
            code="argument-invalid",
            values={"reward": reward, "prompt": prompt, "images": len(found)},
        )


def _read(path: Path) -> np.ndarray:
    import numpy as np

    from tdmr1_rewards.calling.image_files import read_image

    return np.array(read_image(path))


def _save(
    folder: Path | None, images: Sequence[Path], pixels: Sequence[np.ndarray], results: Sequence[ImageScore]
) -> list[Path | None]:
    """Save the images that have boxes; returns the path of each copy, None for an image without boxes."""
    from tdmr1_cli.commands.rewards.boxes import draw_boxes
    from tdmr1_core.durable_files import write_results
    from tdmr1_core.runs.output.image_grids import png

    saved: list[Path | None] = []
    files: dict[Path, bytes] = {}
    for index, (path, image, result) in enumerate(zip(images, pixels, results, strict=True)):
        boxes = result.details.get(BOXES)
        if folder is None or not boxes:
            saved.append(None)
            continue
        target = folder / f"{index:03d}-{path.stem}.png"
        files[target] = png(draw_boxes(image, boxes))
        saved.append(target)
    if files:
        write_results(files)
    return saved


def _report_saved(folder: Path | None, results: Sequence[ImageScore], saved: Sequence[Path | None]) -> None:
    for target in filter(None, saved):
        message(f"saved {target}")
    has_boxes = any(result.details.get(BOXES) for result in results)
    if folder is not None and not has_boxes:
        message(f"nothing was saved in {folder}, because the reward returned no boxes")
    if folder is None and has_boxes:
        message("use --save DIR to save copies with the boxes")


def _details_cell(details: Mapping[str, Any]) -> str:
    """The details of an image as one table cell: values as JSON, boxes as their number and labels."""
    parts = []
    for name, value in details.items():
        if name == BOXES and isinstance(value, list):
            labels = ", ".join(str(box.get("label", "?")) for box in value if isinstance(box, Mapping))
            parts.append(f"boxes: {len(value)}" + (f" ({labels})" if labels else ""))
        else:
            text = json_format.dumps(value, ensure_ascii=False, default=str)
            parts.append(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {text}")
    return "; ".join(parts)


def _documents(
    images: Sequence[Path], prompts: Sequence[str], results: Sequence[ImageScore], saved: Sequence[Path | None]
) -> list[dict[str, Any]]:
    return [
        {"image": str(path), "prompt": prompt, "score": result.score, "details": result.details, "saved": target}
        for path, prompt, result, target in zip(images, prompts, results, saved, strict=True)
    ]
