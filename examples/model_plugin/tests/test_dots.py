"""Tests of the family: samples through the Backbone are those of the pipeline, and its network learns."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tdmr1_dots import FAMILY
from tdmr1_dots.backbone import DotsBackbone

from tdmr1_core.models.pipeline import load_pipeline
from tdmr1_core.plugins import discover

PROMPTS = ["one bright dot", "four dim dots"]


@pytest.fixture(scope="module")
def backbone() -> DotsBackbone:
    """The backbone with the weights of the package."""
    folder = discover().models.get("dots").base
    pipeline = load_pipeline(FAMILY, folder, torch.float32)
    return DotsBackbone(pipeline, device=torch.device("cpu"), precision=torch.float32, max_sequence_length=8)


@torch.no_grad()
def sample(backbone: DotsBackbone, noise: torch.Tensor, steps: int, guidance_scale: float) -> np.ndarray:
    """Euler steps from noise (B, C, H, W) with the Backbone, one image for each prompt: uint8 (B, 32, 32, 3)."""
    conditioning, latents = backbone.encode(PROMPTS), noise
    sigmas = backbone.schedule(steps)
    for sigma, following in pairwise(sigmas):
        level = sigma.float().expand(len(latents))
        velocity = backbone.velocity(latents, level, conditioning, guidance_scale, as_pipeline=True)
        latents = latents - (sigma - following).float() * velocity
    return backbone.decode(latents)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_samples_are_those_of_the_pipeline(backbone: DotsBackbone, guidance_scale: float) -> None:
    """The largest difference of a pixel is 1 of 255, with and without guidance."""
    noise = torch.randn(2, *backbone.latent_shape(32, 32), generator=torch.Generator().manual_seed(0))
    ours = sample(backbone, noise, 4, guidance_scale)
    call = backbone.sampling_call(backbone.schedule(4), (32, 32), 8)
    arguments = call.arguments | {"guidance_scale": FAMILY.scale_of_pipeline(guidance_scale)}
    theirs = backbone.pipeline(PROMPTS, latents=noise, **arguments, output_type="np").images
    assert np.abs((theirs * 255).round() - ours.astype(int)).max() <= 1
    assert ours.std() > 5


def test_bright_dots_are_brighter_than_dim_ones(backbone: DotsBackbone) -> None:
    """The prompt decides how bright an image is."""
    pipeline, random = backbone.pipeline, torch.Generator().manual_seed(0)
    bright, dim = (
        pipeline(f"two {word} dots", num_images_per_prompt=8, generator=random, output_type="np").images.max((1, 2, 3))
        for word in ("bright", "dim")
    )
    assert np.median(bright) > np.median(dim) + 0.2


def test_every_target_is_a_linear_layer(backbone: DotsBackbone) -> None:
    """LoRAs are added to four layers of each block."""
    linear = [name for name, part in backbone.network.named_modules() if isinstance(part, torch.nn.Linear)]
    assert len([name for name in linear if name.endswith(FAMILY.targets)]) == 4 * len(backbone.network.blocks)
