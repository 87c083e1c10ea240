"""Reads and checks a pipeline directory, local or on the hub: family, configs and completeness."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import PIPELINES, Family
from tdmr1_core.models.hub import hub_file, hub_snapshot

INDEX = "model_index.json"
CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
"""The config files of parts without weights. All other parts have a config.json."""
COPY_AGAIN = "copy or download the whole pipeline directory again"
T5 = ("text_encoder_3", "tokenizer_3")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_hub_id(source: str) -> bool:
    """True if the text has the form owner/name and no local path has this name."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def read_config(source: str, name: str) -> dict[str, Any]:
    """Read a JSON file of a pipeline. Raises Tdmr1Error if it is missing, damaged or not available from the hub."""
    path = _hub_config(source, name) if is_hub_id(source) else Path(source) / name
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise Tdmr1Error(
            f"the file {path} of a pipeline is missing or damaged",
            COPY_AGAIN,
            code="model-incomplete",
            values={"source": source, "missing": name},
        ) from error


@lru_cache(maxsize=64)
def _hub_config(repo: str, name: str) -> Path:
    return hub_file(repo, name)


def family_of(source: str) -> Family:
    """The family of a pipeline. Raises Tdmr1Error if the source is not a pipeline, or its class is not supported."""
    if not is_hub_id(source) and not (Path(source) / INDEX).is_file():
        raise Tdmr1Error(
            f"{source} is not a pipeline directory of diffusers: it has no {INDEX}",
            "name a directory written by `save_pretrained` of a diffusers pipeline",
            code="model-incomplete",
            values={"source": source, "missing": INDEX},
        )
    kind = read_config(source, INDEX).get("_class_name")
    if kind not in PIPELINES:
        raise Tdmr1Error(
            f"{source} holds a {kind}, which is not supported",
            f"supported pipelines: {', '.join(PIPELINES)}",
            code="model-unsupported",
            values={"source": source, "pipeline": kind},
        )
    return PIPELINES[kind]


def check_family(source: str, family: Family, model: str) -> None:
    """Raise Tdmr1Error if a pipeline is not of the family of the model."""
    found = family_of(source)
    if found != family:
        raise Tdmr1Error(
            f"{source} holds a {found.pipeline}, but the model {model} is a {family.pipeline}",
            f"choose a model of that family with --model, or use the directory as the model: --model {source}",
            code="model-invalid",
            values={"source": source, "pipeline": found.pipeline, "model": model, "expected": family.pipeline},
        )


def parts_of(source: str, absent: Sequence[str] = ()) -> list[str]:
    """The names of the parts of a pipeline, without those in `absent`."""
    index = read_config(source, INDEX)
    return [
        name
        for name, kind in index.items()
        if isinstance(kind, list) and len(kind) == 2 and kind[0] is not None and name not in absent
    ]


def fetch(source: str, parts: Sequence[str]) -> Path:
    """The local folder with these parts, downloaded if needed. Raises Tdmr1Error if a file is missing or damaged."""
    folder = Path(source)
    if is_hub_id(source):
        folder = hub_snapshot(source, [INDEX, *(f"{part}/*" for part in parts)])
    for part in parts:
        _check_part(folder, part, COPY_AGAIN if folder == Path(source) else f"run `hf download {source}` again")
    return folder


def _check_part(folder: Path, part: str, hint: str) -> None:
    """Raise Tdmr1Error unless config and weights of a part exist and every weight file has its full length."""
    kind = part.split("_")[0]
    if kind == "feature":
        return
    config = folder / part / CONFIGS.get(kind, "config.json")
    if not config.is_file():
        raise _incomplete(folder, f"{part}/{config.name}", "is missing", hint)
    if kind in CONFIGS:
        return
    indices = list((folder / part).glob("*.safetensors.index.json"))
    if indices:
        names = sorted(set(read_config(str(folder / part), indices[0].name).get("weight_map", {}).values()))
    else:
        names = [path.name for path in (folder / part).glob("*.safetensors") if ".fp16" not in path.name]
    if not names:
        raise _incomplete(folder, part, "has no safetensors weights", hint)
    for name in names:
        _check_weights(folder, f"{part}/{name}", hint)


def _check_weights(folder: Path, name: str, hint: str) -> None:
    """Raise Tdmr1Error unless a weight file is complete. Reads its header only, which contains the length."""
    from safetensors import SafetensorError, safe_open

    if not (folder / name).is_file():
        raise _incomplete(folder, name, "is missing", hint)
    try:
        with safe_open(folder / name, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise _incomplete(folder, name, "is truncated or damaged", hint) from error


def _incomplete(folder: Path, name: str, problem: str, hint: str) -> Tdmr1Error:
    return Tdmr1Error(
        f"the pipeline in {folder} is incomplete: {name} {problem}",
        hint,
        code="model-incomplete",
        values={"source": str(folder), "missing": name, "problem": problem},
    )


def absent_parts(source: str, family: Family, *, with_t5: bool) -> tuple[str, ...]:
    """The parts of a pipeline that a model does not use: T5, if it is not wanted or not there."""
    return T5 if family.name == "sd3" and not (with_t5 and has_t5(source)) else ()


def has_t5(source: str) -> bool:
    """True if an SD3 pipeline has its third text encoder, T5."""
    return read_config(source, INDEX).get("text_encoder_3", [None])[0] is not None
