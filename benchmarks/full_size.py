"""Measure an architecture with random weights: peak memory and images per second of every stage.

    python benchmarks/full_size.py --architecture sd3.5-tdm --size 512 --group-size 24 --micro-batch 24
    python benchmarks/full_size.py --architecture tiny-tdm --size 24 --group-size 4        # on a CPU, in seconds

Random weights need the same memory and time as trained ones. Text encoders and rewards are omitted: the conditioning is
random. The output contains the estimate of `tdmr1 plan` for the generator update (`estimated_activations`) and, on a
GPU, the measured growth of the allocated memory during the update (`measured_growth`). On a CPU the peak of a single
stage cannot be measured, so `measured_growth` is null. `sustained_tflops` is the value for `tdmr1 plan --tflops`: the
FLOPs that `tdmr1 plan` counts for an iteration, divided by the seconds of the four stages.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

import pluggy
import torch
from full_conformance import pipeline_settings, scheduler_config

from tdmr1_core import hookspecs
from tdmr1_core.build.parts import PRECISIONS, Parts, apply_memory_settings, build_roles
from tdmr1_core.config import RunConfig
from tdmr1_core.distributed import ALONE
from tdmr1_core.engine import Engine
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.latent_shape import pixels_per_latent
from tdmr1_core.models.loading import backbone_class
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import build_network
from tdmr1_core.models.pipeline import PipelineBackbone
from tdmr1_core.models.quantization import quantize
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.planning.dry_update import dry_update
from tdmr1_core.planning.estimate import Architecture, read_architecture
from tdmr1_core.planning.known_sizes import known_update, point_of
from tdmr1_core.planning.passes import passes_an_image
from tdmr1_core.planning.published_configs import PUBLISHED
from tdmr1_core.planning.sizes import Update
from tdmr1_core.plugins import Hooks
from tdmr1_core.records import Advantages, Conditioning, Groups, Prompt, Trajectory

ENTRIES = {entry.name: entry for entry in BUILTIN_MODELS if entry.base in PUBLISHED or entry.domain == "tiny"}
"""The models whose configs are built in, by name."""


def random_backbone(family: str, architecture: Architecture) -> type[PipelineBackbone]:
    """The backbone class of a family without text encoders: every prompt gets random embeddings of maximum length."""
    kind = backbone_class(FAMILIES[family])
    width, pooled = kind.text_widths(architecture.denoiser)

    class Random(kind):  # type: ignore[misc,valid-type]
        def encode(self, prompts: Sequence[str]) -> Conditioning:
            count = len(prompts)
            texts = Conditioning(torch.randn(count, architecture.tokens, width), torch.randn(count, pooled))
            return texts.to(self.device)

    return Random


def random_pipeline(entry: ModelEntry, architecture: Architecture, config: RunConfig) -> SimpleNamespace:
    """The parts of a pipeline that updates need, with random weights that are made on the device."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.configuration_utils import FrozenDict
    from diffusers.image_processor import VaeImageProcessor

    device, precision = ALONE.device(config.model.device), PRECISIONS[config.model.precision]
    before = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        denoiser = build_network(FAMILIES[entry.family].transformer, architecture.denoiser, str(device))
    finally:
        torch.set_default_dtype(before)
    no_shift = {"shift_factor": 0.0} if entry.family in ("sd3", "zimage", "flux1") else {}
    autoencoder = {**no_shift, **architecture.autoencoder}
    return SimpleNamespace(
        transformer=denoiser,
        vae=build_network(architecture.family.autoencoder, autoencoder, str(device)),
        vae_scale_factor=pixels_per_latent(architecture.autoencoder) * (2 if entry.family == "ernie_image" else 1),
        text_encoder=None,
        text_encoder_2=None,
        text_encoder_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(scheduler_config(entry)),
        config=FrozenDict(pipeline_settings(entry)),
        image_processor=VaeImageProcessor(),
    )


def build(entry: ModelEntry, architecture: Architecture, config: RunConfig, pipeline: SimpleNamespace) -> Engine:
    """An engine with new LoRAs on the networks of a pipeline, whose LoRAs of an earlier engine are removed."""
    device, precision = ALONE.device(config.model.device), PRECISIONS[config.model.precision]
    network: Any = pipeline.transformer
    network.unload_lora()
    if network.is_gradient_checkpointing:
        network.disable_gradient_checkpointing()
    quantized = config.memory.weights
    backbone = random_backbone(entry.family, architecture)(
        pipeline,
        device=device,
        precision=precision,
        max_sequence_length=entry.max_sequence_length,
        denoiser_on_cpu=quantized != "none",  # weights are quantized as they are moved to the GPU
    )
    if quantized != "none":
        quantize(backbone, quantized)
    roles = build_roles(config, backbone, lora_shape(entry))
    apply_memory_settings(config.memory, roles)
    manager = pluggy.PluginManager("tdmr1")
    manager.add_hookspecs(hookspecs)
    return Engine(config, Parts(entry, roles, [Prompt("a", {}), Prompt("b", {})], None, Hooks(manager)))


@dataclass(frozen=True)
class StageCost:
    """What one call of a stage needed."""

    images_per_second: float
    peak_bytes: float
    """Allocated on the GPU; on a CPU, resident in this process since its start."""
    growth_bytes: float | None
    """Peak minus the bytes that were allocated before the call; None on a CPU."""
    warm_up_seconds: float
    """Of the call before, with one micro-batch; compilation included."""


def measure(engine: Engine) -> dict[str, StageCost]:
    """The cost of every stage, measured after a warm-up call with the images of one micro-batch."""
    batch, groups = engine.config.batch, engine.next_groups()
    few = min(batch.micro_batch, batch.group_size) if isinstance(batch.micro_batch, int) else batch.group_size
    warm = _stages(engine, replace(groups, prompts=groups.prompts[:1], group_size=max(2, few)))
    costs: dict[str, StageCost] = {}
    for name, stage in _stages(engine, groups).items():
        began = time.monotonic()
        warm[name]()
        _synchronize()
        warm_up = time.monotonic() - began
        allocated = _reset_peak()
        started = time.monotonic()
        stage()
        _synchronize()
        seconds = time.monotonic() - started
        growth = None if allocated is None else _peak() - allocated
        costs[name] = StageCost(groups.images / seconds, _peak(), growth, warm_up)
    return costs


def _stages(engine: Engine, groups: Groups) -> dict[str, Callable[[], object]]:
    """The stages of an iteration with these groups, by name. The updates use the latents of the last rollout."""
    values = torch.linspace(-1, 1, groups.group_size, dtype=torch.float64)
    advantages = Advantages(values.repeat(len(groups)), 0.0)
    sampled: list[Trajectory] = []
    return {
        "rollout": lambda: sampled.append(engine.rollout(groups)),
        "fake": lambda: engine.update_fake(sampled[-1]),
        "surrogate": lambda: engine.update_surrogate(sampled[-1], advantages),
        "generator": lambda: engine.update_generator(sampled[-1], advantages),
    }


def lora_shape(entry: ModelEntry) -> LoraShape:
    """The rank, alpha and targets of the published LoRA."""
    return LoraShape(entry.rank, entry.alpha, entry.targets)


def planned_update(entry: ModelEntry, architecture: Architecture, config: RunConfig, images: int) -> Update:
    """The estimate of `tdmr1 plan` for the generator update with one micro-batch of `images` images.

    The sizes of published models are known; those of others are measured by a dry update, which takes up to a minute.
    """
    known = known_update(entry, point_of(config, entry, entry.rank))
    if known is not None:
        return replace(known, bytes=images * known.bytes)
    return dry_update(
        config,
        FAMILIES[entry.family],
        architecture.denoiser,
        architecture.latent_shape(entry.height, entry.width),
        architecture.tokens,
        lora_shape(entry),
        images=images,
        gpu=torch.cuda.is_available(),
    )


def _synchronize() -> None:
    """Wait until the GPU, if there is one, is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> float | None:
    """Reset the peak and return the bytes that are allocated on the GPU now; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    _synchronize()
    torch.cuda.reset_peak_memory_stats()
    return float(torch.cuda.memory_allocated())


def _peak() -> float:
    """Peak bytes: allocated on the GPU since the last reset, or resident in this process since its start."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    """Measure and print a JSON document."""
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
    options = parser.parse_args()
    memory = {"gradient_checkpointing": options.checkpointing, "compile": options.compile, "decoder": options.decoder}
    config = RunConfig.model_validate(
        {
            "rewards": [{"name": "none"}],
            "model": {"precision": options.precision},
            "memory": memory,
            "timesteps": {"per_iteration": 1, "optimizer_step": "each"},
            "batch": {"groups": options.groups, "group_size": options.group_size, "micro_batch": options.micro_batch},
        }
    )
    entry = replace(ENTRIES[options.architecture], height=options.size, width=options.size)
    architecture = read_architecture(entry)
    micro_batch = options.micro_batch or options.groups * options.group_size
    update = planned_update(entry, architecture, config, micro_batch)
    before = _peak()
    engine = build(entry, architecture, config, random_pipeline(entry, architecture, config))
    loaded = _peak()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    stages = measure(engine)
    seconds_per_image = sum(1 / stage.images_per_second for stage in stages.values())
    document = {
        **vars(options),
        "device": device,
        "start": before,
        "loaded": loaded,
        "stages": {name: asdict(cost) for name, cost in stages.items()},
        "estimated_activations": update.bytes,
        "measured_growth": stages["generator"].growth_bytes,
        "sustained_tflops": passes_an_image(config, entry, micro_batch) * update.operations / seconds_per_image / 1e12,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
