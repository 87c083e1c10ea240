"""Measure an architecture with random weights: peak memory and images a second of every stage.

    python benchmarks/full_size.py --architecture sd3.5-tdm --size 512 --group-size 24 --micro-batch 24
    python benchmarks/full_size.py --architecture tiny --size 24 --group-size 4        # on a CPU, in seconds

Random weights take the memory and time of trained ones. Text encoders are left out (conditioning is random), and so are
rewards. The estimate of `tdmr1 plan` for the generator's update stands beside what was measured: on a GPU what the
allocator held at most, on a CPU the growth of the process's largest resident size since loading.

Not run on a GPU so far.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pluggy
import torch

from tdmr1_core import hookspecs
from tdmr1_core.assemble import PRECISIONS, Parts, build_roles, choose_device, spare_memory
from tdmr1_core.config import RunConfig
from tdmr1_core.dry_update import dry_update
from tdmr1_core.engine import Engine
from tdmr1_core.models.acquire import backbone_class
from tdmr1_core.models.architectures import PUBLISHED
from tdmr1_core.models.entry import ModelEntry
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.pipeline import PipelineBackbone
from tdmr1_core.models.registry import builtin_models
from tdmr1_core.models.roles import LoraShape
from tdmr1_core.models.skeleton import build_network
from tdmr1_core.plugins import Hooks
from tdmr1_core.records import Advantages, Conditioning, Prompt

TINY = PUBLISHED["stabilityai/stable-diffusion-3-medium-diffusers"]["transformer/config.json"] | {
    "sample_size": 12,
    "num_layers": 2,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "caption_projection_dim": 128,
    "pooled_projection_dim": 32,
    "pos_embed_max_size": 64,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {"tiny": ("sd3", TINY)} | {
    entry.name: (entry.family, PUBLISHED[entry.base]["transformer/config.json"])
    for entry in builtin_models()
    if entry.base in PUBLISHED
}
"""Family and denoiser of each, by the model's name."""
PHOTO_LEVELS = (128, 256, 512, 512)
LEVELS = {"tiny": (16, 32, 32, 32)}
TOKENS = 333


def random_backbone(family: str, config: Mapping[str, Any], tokens: int) -> type[PipelineBackbone]:
    """A family's backbone without text encoders: every text has embeddings of its own length, at random."""

    class Random(backbone_class(FAMILIES[family])):  # type: ignore[misc]
        def encode(self, prompts: Sequence[str]) -> Conditioning:
            return random_texts(config, len(prompts), tokens).to(self.device)

    return Random


def random_texts(config: Mapping[str, Any], count: int, tokens: int) -> Conditioning:
    """Embeddings of the widths that a denoiser takes."""
    width = config.get("joint_attention_dim") or config["cap_feat_dim"]
    return Conditioning(torch.randn(count, tokens, width), torch.randn(count, config.get("pooled_projection_dim", 0)))


def build(name: str, config: RunConfig, size: int) -> Engine:
    """An engine on random weights."""
    from diffusers import AutoencoderKL
    from diffusers.image_processor import VaeImageProcessor

    family, architecture = ARCHITECTURES[name]
    device, precision = choose_device(config.model.device), PRECISIONS[config.model.precision]
    before = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        denoiser = build_network(FAMILIES[family].transformer, architecture, str(device))
    finally:
        torch.set_default_dtype(before)
    levels = LEVELS.get(name, PHOTO_LEVELS)
    vae = AutoencoderKL(
        block_out_channels=levels,
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipeline = SimpleNamespace(
        transformer=denoiser,
        vae=vae,
        vae_scale_factor=2 ** (len(levels) - 1),
        text_encoder=None,
        text_encoder_2=None,
        text_encoder_3=None,
        scheduler=SimpleNamespace(config=SimpleNamespace(shift=3.0)),
        image_processor=VaeImageProcessor(),
    )
    kind = random_backbone(family, architecture, TOKENS)
    backbone = kind(pipeline, device=device, precision=precision, max_sequence_length=TOKENS)
    roles = build_roles(config, backbone, lora_shape(family))
    spare_memory(config.memory, roles)
    manager = pluggy.PluginManager("tdmr1")
    manager.add_hookspecs(hookspecs)
    entry = ModelEntry(name, "", family, "", None, "photo", height=size, width=size)
    return Engine(config, Parts(entry, roles, [Prompt("a", {}), Prompt("b", {})], None, Hooks(manager)))


def measure(engine: Engine) -> dict[str, dict[str, float]]:
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
    results = {}
    for name, stage in stages.items():
        stage()
        _forget_peak()
        started = time.monotonic()
        stage()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.monotonic() - started
        results[name] = {"images_per_second": images / seconds, "peak_bytes": _peak()}
    return results


def lora_shape(family: str) -> LoraShape:
    """Of the published LoRAs."""
    return LoraShape(32, 64.0, FAMILIES[family].targets)


def estimated_activations(name: str, config: RunConfig, size: int) -> float:
    """What `tdmr1 plan` says of the generator's update, in bytes."""
    family, denoiser = ARCHITECTURES[name]
    scale = 2 ** (len(LEVELS.get(name, PHOTO_LEVELS)) - 1)
    latents = (denoiser["in_channels"], size // scale, size // scale)
    gpu = torch.cuda.is_available()
    update = dry_update(config, FAMILIES[family], denoiser, latents, TOKENS, lora_shape(family), gpu=gpu)
    return float(update.bytes * (config.batch.micro_batch or config.batch.groups * config.batch.group_size))


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="sd3.5-tdm")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--group-size", type=int, default=24)
    parser.add_argument("--micro-batch", type=int, default=None)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--decoder", choices=["whole", "sliced", "tiled"], default="sliced")
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
    before = _peak()
    engine = build(given.architecture, config, given.size)
    loaded = _peak()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    stages = measure(engine)
    estimate = estimated_activations(given.architecture, config, given.size)
    measured = stages["generator"]["peak_bytes"] - loaded
    document = {**vars(given), "device": device, "start": before, "loaded": loaded, "stages": stages}
    print(json.dumps(document | {"estimated_activations": estimate, "measured_growth": measured}, indent=1))


if __name__ == "__main__":
    main()
