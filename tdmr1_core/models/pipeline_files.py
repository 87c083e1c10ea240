"""A pipeline's directory, here or on the hub: its family, its configs, and whether all of it is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.entry import ModelEntry
from tdmr1_core.models.families import PIPELINES, Family
from tdmr1_core.models.hub import hub_file, hub_snapshot, is_hub_id

INDEX = "model_index.json"
CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
"""The config of each kind of part without weights; the others have a config.json."""
COPY_AGAIN = "copy or download the whole pipeline directory again"


def read_config(source: str, name: str) -> dict[str, Any]:
    """One of a pipeline's JSON files. Raises Tdmr1Error if it is missing or damaged, or can't be had from the hub."""
    path = _hub_config(source, name) if is_hub_id(source) else Path(source) / name
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise Tdmr1Error(f"{path} is missing or damaged", COPY_AGAIN) from error


@lru_cache(maxsize=64)
def _hub_config(repo: str, name: str) -> Path:
    return hub_file(repo, name)


def family_of(source: str) -> Family:
    """The family of a directory or hub id. Raises Tdmr1Error if it is no pipeline, or of a family we don't know."""
    if not is_hub_id(source) and not (Path(source) / INDEX).is_file():
        raise Tdmr1Error(f"{source} is not a diffusers pipeline directory", f"it needs the {INDEX} of save_pretrained")
    kind = read_config(source, INDEX).get("_class_name")
    if kind not in PIPELINES:
        raise Tdmr1Error(f"{source} holds a {kind}, which is not supported", f"supported: {', '.join(PIPELINES)}")
    return PIPELINES[kind]


def check_family(source: str, family: Family, model: str) -> None:
    """Raise Tdmr1Error for a pipeline of another family than the model's."""
    found = family_of(source)
    if found != family:
        raise Tdmr1Error(
            f"{source} holds a {found.pipeline}, but the model {model} is a {family.pipeline}",
            f"name a model of its kind with --model, or the directory itself: --model {source}",
        )


def parts_of(source: str, absent: Sequence[str] = ()) -> list[str]:
    """The parts a pipeline is made of, but for those that are to be left out."""
    index = read_config(source, INDEX)
    return [
        name
        for name, kind in index.items()
        if isinstance(kind, list) and len(kind) == 2 and kind[0] is not None and name not in absent
    ]


def fetch(source: str, parts: Sequence[str]) -> Path:
    """The local folder with these parts, downloaded if need be. Raises Tdmr1Error if any file of theirs is missing."""
    folder = Path(source)
    if is_hub_id(source):
        folder = hub_snapshot(source, [INDEX, *(f"{part}/*" for part in parts)])
    for part in parts:
        _check_part(folder, part, COPY_AGAIN if folder == Path(source) else f"run `hf download {source}` again")
    return folder


def _check_part(folder: Path, part: str, hint: str) -> None:
    """Raise Tdmr1Error unless a part's config and weights are there, every file of its full length."""
    kind = part.split("_")[0]
    if kind == "feature":
        return
    config = folder / part / CONFIGS.get(kind, "config.json")
    if not config.is_file():
        raise _incomplete(folder, f"{part}/{config.name} is missing", hint)
    if kind in CONFIGS:
        return
    indices = list((folder / part).glob("*.safetensors.index.json"))
    if indices:
        names = sorted(set(read_config(str(folder / part), indices[0].name).get("weight_map", {}).values()))
    else:
        names = [path.name for path in (folder / part).glob("*.safetensors") if ".fp16" not in path.name]
    if not names:
        raise _incomplete(folder, f"{part} has no safetensors weights", hint)
    for name in names:
        _check_weights(folder, f"{part}/{name}", hint)


def _check_weights(folder: Path, name: str, hint: str) -> None:
    """Only the header is read: safetensors compares it with the file's length."""
    from safetensors import SafetensorError, safe_open

    if not (folder / name).is_file():
        raise _incomplete(folder, f"{name} is missing", hint)
    try:
        with safe_open(folder / name, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise _incomplete(folder, f"{name} is cut short or damaged", hint) from error


def _incomplete(folder: Path, what: str, hint: str) -> Tdmr1Error:
    return Tdmr1Error(f"the pipeline in {folder} is incomplete: {what}", hint)


def entry_of_pipeline(source: str) -> ModelEntry:
    """A model entry for a bare pipeline directory or hub id, read from its own configs."""
    family = family_of(source)
    scheduler = read_config(source, "scheduler/scheduler_config.json")
    if scheduler.get("use_dynamic_shifting"):
        raise Tdmr1Error(
            f"the scheduler of {source} shifts its levels by resolution, which is not supported",
            "set use_dynamic_shifting to false in its config, and the shift it was distilled with",
        )
    latents = read_config(source, "transformer/config.json").get("sample_size", 128)
    levels = read_config(source, "vae/config.json").get("block_out_channels", [0] * 4)
    pixels = latents * 2 ** (len(levels) - 1)
    with_t5 = has_t5(source)
    return ModelEntry(
        name=Path(source).name,
        summary=f"the pipeline in {source}",
        family=family.name,
        base=source,
        lora=None,
        domain="photo",
        height=pixels,
        width=pixels,
        shift=scheduler.get("shift", 3.0),
        with_t5=with_t5,
        max_sequence_length=family.max_sequence_length if with_t5 or family.name != "sd3" else 0,
        targets=family.targets,
    )


def has_t5(source: str) -> bool:
    """Whether an SD3 pipeline has its third text encoder."""
    return read_config(source, INDEX).get("text_encoder_3", [None])[0] is not None
