"""Reads and checks a pipeline directory, local or on the hub: family, configs, completeness and fingerprint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tdmr1_core.durable_files import MALFORMED
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import PIPELINES, Family
from tdmr1_core.models.hub import hub_file, hub_snapshot
from tdmr1_rewards.texts.documents import read_json

INDEX = "model_index.json"
CONFIGS = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
"""The config files of parts without weights. All other parts have a config.json."""
COPY_AGAIN = "copy or download the whole pipeline directory again"
SAVE = "`save_pretrained(NEW_DIRECTORY)`"
SINGLE_FILES = {
    ".safetensors": "a single safetensors file",
    ".ckpt": "a single checkpoint file",
    ".gguf": "a GGUF file with quantized weights",
}
"""What a file is that is given in place of a pipeline directory, by suffix."""
OTHER_WEIGHTS = {
    "*.*.safetensors": (
        "those of a variant",
        f"load the pipeline with `from_pretrained(…, variant=…)`, such as fp16, and write a directory with {SAVE}",
    ),
    "*.bin": (
        "a pickle file",
        f"if you trust it, load the pipeline with `from_pretrained(…, use_safetensors=False)`, and use {SAVE}",
    ),
    "*.gguf": ("quantized GGUF weights", "use the weights that they were made from"),
    "*.msgpack": ("Flax weights", "use the weights for PyTorch"),
}
"""Patterns of weights in other formats, with what they are and the way forward."""
READ_COMPLETELY = 64 * 2**20
"""Bytes up to which a file is read completely."""
CHUNKS, CHUNK = 256, 64 * 2**10
"""Number of evenly spaced chunks of a larger file, and the bytes of each."""
T5 = ("text_encoder_3", "tokenizer_3")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_hub_id(source: str) -> bool:
    """True if the text has the form owner/name and no local path has this name."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def hub_id_of(source: str) -> str | None:
    """The hub id owner/name of a pipeline: the source itself, or that of a snapshot in the hub cache; else None."""
    if is_hub_id(source):
        return source
    parts = Path(source).parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith("models--"):
        return None
    owner, _, name = parts[-3].removeprefix("models--").partition("--")
    return f"{owner}/{name}" if name else None


def public_name(source: str) -> str:
    """The hub id of a pipeline, or `path/to/NAME` for a local directory, whose path is private."""
    return hub_id_of(source) or f"path/to/{Path(source).name}"


def is_on_hub(source: str) -> bool:
    """True if the text has the form owner/name[/folder][/file] and no local path has this name."""
    repo = "/".join(source.split("/")[:2])
    return is_hub_id(repo) and not Path(source).exists()


def read_config(source: str, name: str) -> dict[str, Any]:
    """Read a JSON file of a pipeline. Raises Tdmr1Error if it is missing, damaged or not available from the hub."""
    path = _hub_config(source, name) if is_hub_id(source) else Path(source) / name
    try:
        return dict(read_json(path))
    except (OSError, *MALFORMED) as error:
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
        raise _not_a_pipeline(Path(source))
    kind = read_config(source, INDEX).get("_class_name")
    if kind not in PIPELINES:
        raise Tdmr1Error(
            f"{source} holds a {kind}, which is not supported",
            f"supported pipelines: {', '.join(PIPELINES)}; a plugin of its own package can add others",
            code="model-unsupported",
            values={"source": source, "pipeline": kind},
        )
    return PIPELINES[kind]


def _not_a_pipeline(path: Path) -> Tdmr1Error:
    """The error for a path without model_index.json. It says what was found there, and how to convert it."""
    found, hint = f"it has no {INDEX}", "name a directory written by `save_pretrained` of a diffusers pipeline"
    inside = sorted(each.parent for pattern in (f"snapshots/*/{INDEX}", f"*/{INDEX}") for each in path.glob(pattern))
    if path.is_file():
        single = SINGLE_FILES.get(path.suffix, "a file")
        found = f"it is {single}"
        hint = f"load it with `from_single_file` of the pipeline class, and write a directory with {SAVE}"
    elif inside:
        found += f", but {inside[-1]} has one"
        hint = f"name that directory: {inside[-1]}"
    elif not path.exists():
        found, hint = "it does not exist", f"{hint}, or a hub id owner/name"
    return Tdmr1Error(
        f"{path} is not a pipeline directory of diffusers: {found}",
        hint,
        code="model-incomplete",
        values={"source": str(path), "missing": INDEX, "found": [str(each) for each in inside]},
    )


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
    config = config_name(part)
    if not (folder / part / config).is_file():
        raise _incomplete(folder, f"{part}/{config}", "is missing", hint)
    if kind in CONFIGS:
        return
    names = weight_names(folder / part)
    if not names:
        raise _no_weights(folder, part, hint)
    for name in names:
        _check_weights(folder, f"{part}/{name}", hint)


def config_name(part: str) -> str:
    """The name of the config file of a part."""
    return CONFIGS.get(part.split("_")[0], "config.json")


def weight_names(part: Path) -> list[str]:
    """The names of the safetensors files in the folder of a part that are loaded, sorted."""
    indices = list(part.glob("*.safetensors.index.json"))
    if indices:
        return sorted(set(read_config(str(part), indices[0].name).get("weight_map", {}).values()))
    return sorted(path.name for path in part.glob("*.safetensors") if path.name.count(".") == 1)


def _no_weights(folder: Path, part: str, hint: str) -> Tdmr1Error:
    """The error for a part without safetensors weights. It names weights of another format and the way forward."""
    for pattern, (what, convert) in OTHER_WEIGHTS.items():
        others = sorted(path.name for path in (folder / part).glob(pattern))
        if others:
            problem = f"has no safetensors weights in full precision, only {what} ({others[0]})"
            return _incomplete(folder, part, problem, convert)
    return _incomplete(folder, part, "has no safetensors weights", hint)


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
    """The parts of a pipeline that are not loaded: those that sampling does not need, and T5 without `with_t5`."""
    if family.optional_t5:
        return () if with_t5 and has_t5(source) else T5
    return tuple(part for part in parts_of(source) if part in family.not_loaded)


def has_t5(source: str) -> bool:
    """True if a pipeline has its third text encoder, T5."""
    return (read_config(source, INDEX).get("text_encoder_3") or [None])[0] is not None


def file_hash(path: Path) -> str:
    """The SHA-256 of the size and the content of a file; of chunks of the content if the file is large.

    Weights that were trained further differ in nearly every chunk.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        if size <= READ_COMPLETELY:
            digest.update(file.read())
        else:
            for number in range(CHUNKS):
                file.seek(number * (size - CHUNK) // (CHUNKS - 1))
                digest.update(file.read(CHUNK))
    return digest.hexdigest()


def pipeline_hash(folder: Path, absent: Sequence[str] = (), only: str | None = None) -> str:
    """The SHA-256 of configs and weights of a pipeline directory, without the parts in `absent`; or of one part."""
    digest = hashlib.sha256()
    for part in sorted([only] if only else parts_of(str(folder), absent)):
        names = (config_name(part), *weight_names(folder / part))
        for path in (folder / part / name for name in names):
            if path.is_file():
                digest.update(f"{part}/{path.name} {file_hash(path)}\n".encode())
    return digest.hexdigest()
