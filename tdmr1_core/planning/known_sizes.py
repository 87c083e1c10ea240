"""The sizes of published models in `known_sizes.json`, so that a plan imports neither torch nor diffusers.

`benchmarks/known_sizes.py` measures them with `counting.py` and `dry_update.py`. The rules:

- Parameters are exact. A LoRA has `lora_per_rank` x rank parameters.
- A row of `updates` is the dry update of one image at one `Point`: FLOPs of a forward pass, and peak bytes. Both are
  used as they are measured; a micro-batch of n images counts n times the bytes of one, as with a dry update.
- Any other size, rank, precision or loss is measured by a dry update.
- Entries hold a hash of what they were measured from (`inputs_hash`). An entry of a model whose configs or targets
  differ is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tdmr1_core.config import RunConfig
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.planning.passes import inputs_of_frozen_passes
from tdmr1_core.planning.published_configs import PUBLISHED
from tdmr1_core.planning.sizes import Parameters, Update
from tdmr1_rewards.texts.documents import read_json

FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Point:
    """The settings that the size of a generator update depends on, for one model."""

    height: int
    """In pixels, as `width`."""
    width: int
    rank: int
    """Of the LoRAs."""
    precision: str
    gpu: bool
    """False for an update on a CPU, where layer norms do not run in float32."""
    recomputed: bool
    """Whether blocks are recomputed in the backward pass."""
    kind: str
    teacher_inputs: int
    """Inputs per image in the pass of the teacher (`inputs_of_frozen_passes`)."""
    surrogate_inputs: int


def point_of(config: RunConfig, entry: ModelEntry, rank: int) -> Point:
    """The point of the settings of a run with LoRAs of this rank."""
    teacher, surrogate = inputs_of_frozen_passes(config)
    return Point(
        height=config.model.height or entry.height,
        width=config.model.width or entry.width,
        rank=rank,
        precision=config.model.precision,
        gpu=config.model.device != "cpu",
        recomputed=config.memory.recomputes,
        kind=config.kind,
        teacher_inputs=teacher,
        surrogate_inputs=surrogate,
    )


def known_parameters(entry: ModelEntry) -> Parameters | None:
    """The parameters of a published model; None if they are not known."""
    found = _find(entry)
    return None if found is None else Parameters(**found["parameters"])


def known_update(entry: ModelEntry, point: Point) -> Update | None:
    """The generator update of a published model for one image; None if it is not known at this point."""
    found, parameters = _find(entry), known_parameters(entry)
    if found is None or parameters is None:
        return None
    for row in found["updates"]:
        if row["point"] == asdict(point):
            return Update(
                parameters.denoiser,
                parameters.linear,
                parameters.lora_per_rank * point.rank,
                row["operations"],
                row["bytes"],
                row["prompt_bytes"],
            )
    return None


def inputs_hash(entry: ModelEntry) -> str | None:
    """The first 16 hex digits of the SHA-256 of what the sizes of a model depend on; None for local configs."""
    if entry.base not in PUBLISHED:
        return None
    inputs = [entry.family, PUBLISHED[entry.base], entry.targets, entry.max_sequence_length, entry.with_t5]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _find(entry: ModelEntry) -> Mapping[str, Any] | None:
    """The sizes that were measured from the inputs of this model, under its name or another one."""
    wanted = inputs_hash(entry)
    models = read_known_sizes()["models"].values() if wanted else ()
    return next((each for each in models if each["inputs"] == wanted), None)


@cache
def read_known_sizes() -> Mapping[str, Any]:
    """The content of the file: `versions` of the packages that measured, and `models` by name."""
    found: Mapping[str, Any] = read_json(FILE)
    return found
