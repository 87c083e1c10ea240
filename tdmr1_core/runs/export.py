"""A run's averaged generator as a diffusers LoRA, written only after a clean pipeline drew the same pixels with it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdmr1_core.algorithm.flow import unshift_sigma
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora_files import WEIGHT_FILE, write_lora
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.models.sd3 import load_pipeline
from tdmr1_core.runs.evaluate import draw, evaluation_noise

COMPARED_PROMPTS, COMPARED_IMAGES = 4, 2


@dataclass(frozen=True)
class Exported:
    """A written LoRA file, and how far the clean pipeline's pixels were from ours (levels of 255, images compared)."""

    file: Path
    largest_difference: int
    images: int


def export_lora(engine: Engine, folder: Path) -> Exported:
    """Write `folder/pytorch_lora_weights.safetensors`. Raises Tdmr1Error if it exists or does not draw the same."""
    if (folder / WEIGHT_FILE).exists():
        raise Tdmr1Error(f"{folder / WEIGHT_FILE} is already there", "choose another --output, or remove it first")
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        write_lora(engine.roles, GENERATOR_EMA, building)
        difference, images = _compare(engine, building)
        if difference > 1:
            raise Tdmr1Error(
                f"the exported LoRA draws other pictures: a pixel differs by {difference} of 255",
                "nothing was written; please report this with `tdmr1 doctor`",
            )
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(building / WEIGHT_FILE, folder / WEIGHT_FILE)
    except OSError as error:
        raise Tdmr1Error(f"{folder} can't be written: {error.strerror}", "choose another --output") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Exported(folder / WEIGHT_FILE, difference, images)


def _compare(engine: Engine, lora: Path) -> tuple[int, int]:
    """Largest pixel difference between our sampling and diffusers' own call with the LoRA loaded, and of how many."""
    prompts, seed = engine.prompts[:COMPARED_PROMPTS], engine.config.evaluation.seed
    backbone = engine.roles.backbone
    pipeline = load_pipeline(engine.entry.base, with_t5=engine.entry.with_t5)
    pipeline.load_lora_weights(str(lora))
    pipeline.to(backbone.device, dtype=next(iter(backbone.network.parameters())).dtype)
    height, width = engine.size
    shape = backbone.latent_shape(height, width)
    largest = 0
    for prompt in prompts:
        ours = draw(engine, GENERATOR_EMA, [prompt], COMPARED_IMAGES, seed).images
        noise = evaluation_noise([prompt], COMPARED_IMAGES, seed, shape)
        with torch.no_grad():
            theirs = pipeline(
                prompt.text,
                num_images_per_prompt=COMPARED_IMAGES,
                sigmas=unshift_sigma(engine.sigmas[:-1], pipeline.scheduler.config.shift).tolist(),
                guidance_scale=1.0,
                height=height,
                width=width,
                latents=noise.to(device=backbone.device, dtype=backbone.dtype),
                max_sequence_length=engine.entry.max_sequence_length,
                output_type="np",
            ).images
        largest = max(largest, int(np.abs((theirs * 255).round().astype(int) - ours.astype(int)).max()))
    return largest, len(prompts) * COMPARED_IMAGES
