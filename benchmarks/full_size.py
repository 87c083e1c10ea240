"""Measure an architecture with random weights: peak memory and images a second of every stage.

    python benchmarks/full_size.py --architecture sd3.5-tdm --size 512 --group-size 24 --micro-batch 24
    python benchmarks/full_size.py --architecture tiny-tdm --size 24 --group-size 4        # on a CPU, in seconds

Random weights take the memory and time of trained ones. Text encoders are left out (conditioning is random), and so are
rewards. The estimate of `tdmr1 plan` for the generator's update stands beside what was measured: on a GPU how
much more its allocator held at most than just before the update; a CPU's has no peak that could be taken for a stage.

Not run on a GPU so far.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pluggy
import torch

from tdmr1_core import hookspecs
from tdmr1_core.build.parts import PRECISIONS, Parts, apply_memory_settings, build_roles, choose_device
from tdmr1_core.config import RunConfig
from tdmr1_core.engine import Engine
from tdmr1_core.models.entry import ModelEntry
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.loading import backbone_class
from tdmr1_core.models.meta_network import build_network
from tdmr1_core.models.pipeline import PipelineBackbone
from tdmr1_core.models.registry import builtin_models
from tdmr1_core.models.roles import LoraShape
from tdmr1_core.planning.dry_update import dry_update, text_widths
from tdmr1_core.planning.estimate import Architecture, read_architecture
from tdmr1_core.planning.published_configs import PUBLISHED
from tdmr1_core.plugins import Hooks
from tdmr1_core.records import Advantages, Conditioning, Prompt

ENTRIES = {entry.name: entry for entry in builtin_models() if entry.base in PUBLISHED or entry.domain == "tiny"}
"""The models whose architecture is at hand, by name."""


def random_backbone(family: str, architecture: Architecture) -> type[PipelineBackbone]:
    """A family's backbone without text encoders: every text has the longest embeddings, at random."""
    width, pooled = text_widths(architecture.denoiser)

    class Random(backbone_class(FAMILIES[family])):  # type: ignore[misc]
        def encode(self, prompts: Sequence[str]) -> Conditioning:
            count = len(prompts)
            texts = Conditioning(torch.randn(count, architecture.tokens, width), torch.randn(count, pooled))
            return texts.to(self.device)

    return Random


def build(entry: ModelEntry, architecture: Architecture, config: RunConfig) -> Engine:
    """An engine on random weights."""
    from diffusers.image_processor import VaeImageProcessor

    device, precision = choose_device(config.model.device), PRECISIONS[config.model.precision]
    before = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        denoiser = build_network(FAMILIES[entry.family].transformer, architecture.denoiser, str(device))
    finally:
        torch.set_default_dtype(before)
    pipeline = SimpleNamespace(
        transformer=denoiser,
        vae=build_network("AutoencoderKL", {"shift_factor": 0.0, **architecture.autoencoder}, str(device)),
        vae_scale_factor=architecture.latent_pixels,
        text_encoder=None,
        text_encoder_2=None,
        text_encoder_3=None,
        scheduler=SimpleNamespace(config=SimpleNamespace(shift=entry.shift)),
        image_processor=VaeImageProcessor(),
    )
    kind = random_backbone(entry.family, architecture)
    backbone = kind(pipeline, device=device, precision=precision, max_sequence_length=entry.max_sequence_length)
    roles = build_roles(config, backbone, lora_shape(entry))
    apply_memory_settings(config.memory, roles)
    manager = pluggy.PluginManager("tdmr1")
    manager.add_hookspecs(hookspecs)
    return Engine(config, Parts(entry, roles, [Prompt("a", {}), Prompt("b", {})], None, Hooks(manager)))


def measure(engine: Engine) -> dict[str, dict[str, float | None]]:
    """Images a second and peak bytes of every stage, after one round that is not counted."""
    trajectory = engine.rollout(engine.next_groups())
    images = trajectory.groups.images
    values = torch.linspace(-1, 1, engine.config.batch.group_size, dtype=torch.float64)
    advantages = Advantages(values.repeat(engine.config.batch.groups), 0.0)
    stages: dict[str, Callable[[], object]] = {
        "rollout": lambda: engine.rollout(trajectory.groups),
        "fake": lambda: engine.update_fake(trajectory),
        "surrogate": lambda: engine.update_surrogate(trajectory, advantages),
        "generator": lambda: engine.update_generator(trajectory, advantages),
    }
    results: dict[str, dict[str, float | None]] = {}
    for name, stage in stages.items():
        stage()
        held = _forget_peak()
        started = time.monotonic()
        stage()
        _finish()
        seconds = time.monotonic() - started
        growth = None if held is None else _peak() - held
        results[name] = {"images_per_second": images / seconds, "peak_bytes": _peak(), "growth_bytes": growth}
    return results


def lora_shape(entry: ModelEntry) -> LoraShape:
    """Of the published LoRAs."""
    return LoraShape(entry.rank, entry.alpha, entry.targets)


def estimated_activations(entry: ModelEntry, architecture: Architecture, config: RunConfig) -> int:
    """What `tdmr1 plan` says of the generator's update, in bytes, for as many images as are updated at once."""
    images = config.batch.micro_batch or config.batch.groups * config.batch.group_size
    return dry_update(
        config,
        FAMILIES[entry.family],
        architecture.denoiser,
        architecture.latent_shape(entry.height, entry.width),
        architecture.tokens,
        lora_shape(entry),
        images=int(images),
        gpu=torch.cuda.is_available(),
    ).bytes


def _finish() -> None:
    """Wait until a GPU has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forget_peak() -> float | None:
    """Begin anew to look for the peak; returns what a GPU's allocator holds now, and of a CPU nothing."""
    if not torch.cuda.is_available():
        return None
    _finish()
    torch.cuda.reset_peak_memory_stats()
    return float(torch.cuda.memory_allocated())


def _peak() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ENTRIES, default="sd3.5-tdm")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--group-size", type=int, default=24)
    parser.add_argument("--micro-batch", type=int, default=None)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--decoder", choices=["none", "sliced", "tiled"], default="sliced")
    given = parser.parse_args()
    memory = {"gradient_checkpointing": given.checkpointing, "compile": given.compile, "decoder": given.decoder}
    config = RunConfig.model_validate(
        {
            "rewards": [{"name": "none"}],
            "model": {"precision": given.precision},
            "memory": memory,
            "timesteps": {"per_iteration": 1, "optimizer_step": "each"},
            "batch": {"groups": given.groups, "group_size": given.group_size, "micro_batch": given.micro_batch},
        }
    )
    entry = replace(ENTRIES[given.architecture], height=given.size, width=given.size)
    architecture = read_architecture(entry)
    estimate = estimated_activations(entry, architecture, config)
    before = _peak()
    engine = build(entry, architecture, config)
    loaded = _peak()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    stages = measure(engine)
    measured = stages["generator"]["growth_bytes"]
    document = {**vars(given), "device": device, "start": before, "loaded": loaded, "stages": stages}
    print(json.dumps(document | {"estimated_activations": estimate, "measured_growth": measured}, indent=1))


if __name__ == "__main__":
    main()
