"""Errors of the output in bf16 with merged LoRAs and with PEFT's layers, against fp32, on the embedded model.

    python benchmarks/lora_error.py --iterations 10

Each row is a LoRA: the few-step LoRA of the generator, the generator and the surrogate after some iterations of the
preset tiny, and the surrogate divided by 10, 100 and 1000. "output" is |v - v in fp32| / |v in fp32|. "change" is the
error of what the LoRA changes: v with LoRA - v without, both in bf16, against the same difference d in fp32. "kept" is
the projection of this change on d, <change, d> / <d, d>: 1 if rounding is unbiased, below 1 if a small LoRA is lost.
`memory.lora: auto` is decided by these numbers.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from tdmr1_core.config_loading import parse_assignments, read_preset, resolve
from tdmr1_core.engine import Engine
from tdmr1_core.models.roles import FAKE, GENERATOR, SURROGATE, TEACHER, LoraWeights

VARIANTS = {"peft": "memory.lora=peft", "merged": "memory.lora=merged"}
IMAGES = 192


def build(*settings: str) -> Engine:
    """An engine on the embedded model."""
    tree = {"rewards": [{"name": "object_count"}], "model": {"name": "tiny-tdm"}}
    return Engine.from_config(resolve([read_preset("tiny"), tree, parse_assignments(settings)]))


@torch.no_grad()
def velocities(engine: Engine, weights: LoraWeights) -> tuple[Tensor, Tensor]:
    """v with a LoRA and v without, (B, C, H, W) each, for fixed inputs."""
    engine.roles.load(FAKE, weights, "the measured LoRA")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(IMAGES, *engine.roles.backbone.latent_shape(*engine.size), generator=generator)
    level = torch.rand(IMAGES, generator=generator)
    conditioning = engine.conditioning((engine.prompts * IMAGES)[:IMAGES])
    found = []
    for role in (FAKE, TEACHER):
        with engine.roles.acting(role) as backbone:
            found.append(backbone.velocity(latents, level, conditioning))
    return found[0], found[1]


def relative(found: Tensor, wanted: Tensor) -> float:
    """The relative error of a tensor."""
    return ((found - wanted).norm() / wanted.norm()).item()


def scaled(weights: LoraWeights, factor: float) -> LoraWeights:
    """A LoRA whose change of the weights is multiplied by `factor`."""
    return {name: weight * factor if "lora_B" in name else weight for name, weight in weights.items()}


def main() -> None:
    """Train in fp32, then print one line for each LoRA."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10)
    options = parser.parse_args()
    exact = build(VARIANTS["peft"])
    loras = {"few-step LoRA": exact.roles.weights(GENERATOR)}
    for _ in range(options.iterations):
        exact.iteration()
    loras[f"generator after {options.iterations} iterations"] = exact.roles.weights(GENERATOR)
    trained = exact.roles.weights(SURROGATE)
    loras |= {f"surrogate x {factor:g}": scaled(trained, factor) for factor in (1.0, 0.1, 0.01, 0.001)}
    rounded = {name: build(setting, "model.precision=bf16") for name, setting in VARIANTS.items()}
    print(
        "LoRA | change of v | output, peft | output, merged | change, peft | change, merged | kept, peft | kept, merged"
    )
    for name, weights in loras.items():
        wanted, base = velocities(exact, weights)
        outputs, changes, kept = [], [], []
        for engine in rounded.values():
            found, without = velocities(engine, weights)
            outputs.append(f"{relative(found, wanted):.4f}")
            changes.append(f"{relative(found - without, wanted - base):.4f}")
            kept.append(f"{((found - without) * (wanted - base)).sum() / (wanted - base).square().sum():.3f}")
        print(" | ".join([name, f"{relative(wanted, base):.4f}", *outputs, *changes, *kept]), flush=True)


if __name__ == "__main__":
    main()
