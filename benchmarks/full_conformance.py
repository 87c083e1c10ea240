"""Compare a family with its pipeline at the published size, with random weights: pixels with and without guidance.

    python benchmarks/full_conformance.py --model flux2-klein-4b --size 512
    python benchmarks/full_conformance.py --model tiny-tdm --size 24        # on a CPU, in seconds

`tdmr1 models check` makes the same comparison with tiny pipelines and with real weights. Here the denoiser has its
published config and random weights in float32, the autoencoder is random, and prompts are random embeddings, so that
nothing is downloaded. The output is a JSON document with the largest difference of a pixel for each guidance scale.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch

from tdmr1_core.conformance.checks import GUIDANCE, PIXELS, STEPS
from tdmr1_core.conformance.subject import largest_difference
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.loading import backbone_class
from tdmr1_core.models.meta_network import build_network
from tdmr1_core.models.pipeline import PipelineBackbone
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.planning.published_configs import config_of
from tdmr1_core.records import Conditioning
from tdmr1_core.stages.sampling import sample

TOKENS = 64
"""Tokens of a prompt. Random embeddings need no more."""


def build(entry: ModelEntry, device: torch.device) -> Any:
    """A pipeline of diffusers with random weights and without text encoders."""
    import diffusers

    family = FAMILIES[entry.family]
    autoencoder = dict(config_of(entry.base, "vae/config.json"))
    if family.autoencoder == "AutoencoderKL":
        autoencoder = {"shift_factor": 0.0, **autoencoder}
    parts = {
        "transformer": build_network(
            family.find_class(family.transformer), config_of(entry.base, "transformer/config.json"), str(device)
        ),
        "vae": build_network(family.autoencoder, autoencoder, str(device)),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler.from_config(scheduler_config(entry)),
    }
    kind = family.find_class(family.pipeline)
    absent = set(kind._get_signature_keys(kind)[0]) - parts.keys()
    pipeline = kind(**parts, **dict.fromkeys(absent), **pipeline_settings(entry))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pipeline_settings(entry: ModelEntry) -> dict[str, Any]:
    """The published settings of the pipeline itself."""
    index = config_of(entry.base, "model_index.json")
    return {name: value for name, value in index.items() if name == "is_distilled"}


def scheduler_config(entry: ModelEntry) -> dict[str, Any]:
    """The published config of the scheduler, or the shift of the entry."""
    try:
        return dict(config_of(entry.base, "scheduler/scheduler_config.json"))
    except KeyError:
        return {"shift": entry.shift or 1.0}


def texts(backbone: PipelineBackbone, count: int, seed: int) -> Conditioning:
    """Random embeddings of `count` prompts."""
    generator = torch.Generator().manual_seed(seed)
    width, pooled = backbone.text_widths(dict(backbone.pipeline.transformer.config))
    tokens = torch.randn(count, TOKENS, width, generator=generator)
    mask = torch.ones(count, TOKENS, dtype=torch.bool) if backbone.family.name == "krea2" else None
    return Conditioning(tokens, torch.randn(count, pooled, generator=generator), mask=mask).to(backbone.device)


def negative(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the conditioning as those of the negative prompt."""
    return {f"negative_{name}": value for name, value in arguments.items()}


@torch.no_grad()
def compare(entry: ModelEntry, size: tuple[int, int], scales: Sequence[float]) -> dict[str, int]:
    """The largest difference of a pixel for each guidance scale."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = build(entry, device)
    backbone = backbone_class(FAMILIES[entry.family])(
        pipeline, device=device, precision=torch.float32, max_sequence_length=TOKENS
    )
    prompts, empty = texts(backbone, 2, 1), texts(backbone, 1, 2)
    backbone.__dict__["unconditional"] = empty
    levels = backbone.noise_schedule(size, STEPS) if entry.shift is None else entry.shift
    sigmas = backbone.schedule(STEPS, levels)
    noise = torch.randn(2, *backbone.latent_shape(*size), generator=torch.Generator().manual_seed(0)).to(device)
    call = backbone.sampling_call(sigmas, size, TOKENS)
    call.prepare(pipeline)
    found = {}
    for scale in scales:
        ours = backbone.decode(sample(backbone, noise, prompts, sigmas, guidance_scale=scale)[-1])
        arguments = {**call.arguments, backbone.family.guidance_argument: backbone.family.scale_of_pipeline(scale)}
        if scale != 1.0:
            arguments |= negative(backbone.call_arguments(empty.expand(2)))
            if getattr(pipeline.config, "is_distilled", False):
                pipeline.register_to_config(is_distilled=False)
        theirs = pipeline(
            **backbone.call_arguments(prompts), **arguments, latents=backbone.pipeline_latents(noise), output_type="np"
        ).images
        found[f"{scale:g}"] = largest_difference(ours, theirs)
    return found


def main() -> None:
    """Compare one model and print a JSON document. Ends with 1 if a pixel differs by more than rounding explains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[entry.name for entry in BUILTIN_MODELS], default="tiny-tdm")
    parser.add_argument("--size", type=int, default=None, help="pixels of each side (default: those of the model)")
    options = parser.parse_args()
    entry = next(entry for entry in BUILTIN_MODELS if entry.name == options.model)
    size = (options.size or entry.height, options.size or entry.width)
    found = compare(entry, size, (1.0, GUIDANCE))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(json.dumps({"model": entry.name, "size": size, "device": device, "largest_difference": found}, indent=1))
    raise SystemExit(max(found.values()) > PIXELS)


if __name__ == "__main__":
    main()
