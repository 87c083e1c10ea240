"""Measures the sizes of the published models and writes `tdmr1_core/planning/known_sizes.json`.

    python benchmarks/known_sizes.py            # all models: about a minute each on one core, no GPU and no weights
    python benchmarks/known_sizes.py --changed  # parameters, and updates of models whose configs or targets changed

For every registered model with built-in configs, the parameters are counted, and dry updates of one image are run: of a
training at its default size and at 512 and 1024 pixels, and of a distillation at its default size, with the default
settings of the model, with and without recomputation. Models with the same inputs are measured once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
from torch import nn

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import resolve
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork, build_network
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.planning.dry_update import dry_update
from tdmr1_core.planning.estimate import Architecture, read_architecture
from tdmr1_core.planning.known_sizes import FILE, Point, inputs_hash, point_of, read_known_sizes
from tdmr1_core.planning.published_configs import PUBLISHED
from tdmr1_core.planning.sizes import Parameters, Update
from tdmr1_core.versions import versions

SIDES = (512, 1024)
"""Sides of square images that are measured beside the default size of a model, in pixels."""
MEASURED_WITH = ("torch", "diffusers", "transformers", "peft")

ENTRIES = {entry.name: entry for entry in BUILTIN_MODELS if entry.base in PUBLISHED}


def measure_parameters(entry: ModelEntry, architecture: Architecture) -> Parameters:
    """The parameters of the networks of a model."""
    family = FAMILIES[entry.family]
    network = build_network(family.find_class(family.transformer), architecture.denoiser, "meta")
    shapes = MetaNetwork(family, architecture.denoiser).lora(LoraShape(1, 1.0, entry.targets))
    return Parameters(
        denoiser=sum(weight.numel() for weight in (*network.parameters(), *network.buffers())),
        linear=sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear)),
        text_encoders=architecture.encoders,
        autoencoder=architecture.decoder,
        lora_per_rank=sum(torch.Size(shape).numel() for shape in shapes.values()),
        gathered=architecture.gathered,
        gathered_text_encoders=architecture.gathered_encoders,
    )


def settings_of(entry: ModelEntry) -> Iterator[RunConfig]:
    """The settings that are measured. A size that the model does not support is skipped."""
    default = (entry.height, entry.width)
    sizes = dict.fromkeys([default, *((side, side) for side in SIDES)])
    runs = [("distill", default), *(("train", size) for size in sizes)]
    for (kind, (height, width)), recomputed in product(runs, (False, True)):
        rewards = [{"name": "none"}] if kind == "train" else []
        changed = {"model": {"height": height, "width": width}, "memory": {"gradient_checkpointing": recomputed}}
        yield resolve([entry.settings, {"kind": kind, "rewards": rewards}, changed])


def measure_update(entry: ModelEntry, architecture: Architecture, config: RunConfig) -> Update:
    """The dry update of one image at the rank of the entry. Raises Tdmr1Error for a size that is not supported."""
    size = config.model.height or entry.height, config.model.width or entry.width
    shape = LoraShape(entry.rank, entry.alpha, entry.targets)
    family = FAMILIES[entry.family]
    return dry_update(
        config, family, architecture.denoiser, architecture.latent_shape(*size), architecture.tokens, shape
    )


def measure_updates(entry: ModelEntry, architecture: Architecture) -> list[dict[str, Any]]:
    """The updates of a model in the file."""
    updates = []
    for config in settings_of(entry):
        point: Point = point_of(config, entry, entry.rank)
        try:
            update = measure_update(entry, architecture, config)
        except Tdmr1Error as error:
            if error.code != "setting-invalid":
                raise
            continue
        sizes = {"operations": update.operations, "bytes": update.bytes, "prompt_bytes": update.prompt_bytes}
        updates.append({"point": asdict(point), **sizes})
        print(entry.name, point, f"{update.bytes / 1e9:.3f} GB", file=sys.stderr, flush=True)
    return updates


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changed", action="store_true", help="keep the updates of models whose inputs are the same")
    kept = read_known_sizes()["models"].values() if parser.parse_args().changed else ()
    updates = {each["inputs"]: each["updates"] for each in kept}
    models: dict[str, Mapping[str, Any]] = {}
    for entry in ENTRIES.values():
        inputs = str(inputs_hash(entry))
        if inputs not in models:
            architecture = read_architecture(entry, use_known=False)
            parameters = asdict(measure_parameters(entry, architecture))
            measured = updates.get(inputs) or measure_updates(entry, architecture)
            models[inputs] = {"inputs": inputs, "parameters": parameters, "updates": measured}
            write(models)


def write(measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the file. `measured` are the entries by the hash of their inputs; each gets the name of its first model."""
    names: dict[str, str] = {}
    for name, entry in ENTRIES.items():
        names.setdefault(str(inputs_hash(entry)), name)
    models = {name: measured[inputs] for inputs, name in names.items() if inputs in measured}
    found = {name: number for name, number in versions().items() if name in MEASURED_WITH}
    FILE.write_text(json.dumps({"versions": found, "models": models}, indent=1) + "\n")


if __name__ == "__main__":
    main()
