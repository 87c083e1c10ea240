"""Exports a run's averaged generator as a diffusers LoRA, and checks it: a new pipeline must give the same pixels."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from tdmr1_core.config_loading import fingerprint
from tdmr1_core.durable_files import write_results
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.loading import ModelFiles
from tdmr1_core.models.lora.files import COMFY_FILE, write_comfy_lora, write_lora
from tdmr1_core.models.lora.metadata import WEIGHT_FILE
from tdmr1_core.models.pipeline import PipelineBackbone, SamplingCall
from tdmr1_core.models.pipeline_files import public_name
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.runs.evaluation.evaluate import evaluation_noise, sample_images
from tdmr1_core.runs.output.model_card import model_card
from tdmr1_core.versions import versions
from tdmr1_rewards.errors import one_line
from tdmr1_rewards.texts.redaction import redact, redact_texts

COMPARED_PROMPTS, COMPARED_IMAGES = 4, 2
CARD = "README.md"
EXPORT = "export"
"""The folder of the exported LoRA inside a run folder."""


@dataclass(frozen=True)
class Exported:
    """The written files and the result of the check.

    `largest_difference` is the largest difference of a pixel (0 to 255) over the `images` compared. `call` holds the
    arguments that the pipeline needs beside the prompt, and changes of its scheduler.
    """

    file: Path
    comfy_file: Path | None
    largest_difference: int
    images: int
    call: SamplingCall


def export_lora(engine: Engine, folder: Path, *, comfy: bool = False) -> Exported:
    """Write `folder/pytorch_lora_weights.safetensors`, a model card and, with `comfy`, a LoRA file for ComfyUI.

    Raises Tdmr1Error if a file already exists, if the LoRA does not reproduce the images, if ComfyUI has no names for
    the family, or if writing fails.
    """
    names = file_names(comfy=comfy)
    for name in names:
        if (folder / name).exists():
            raise Tdmr1Error(
                f"{folder / name} already exists",
                "choose another --output, or remove the file first",
                code="file-exists",
                values={"path": str(folder / name)},
            )
    backbone, model_files = engine.roles.backbone, engine.model_files
    assert isinstance(backbone, PipelineBackbone)
    assert model_files is not None
    if comfy and model_files.family.comfy_prefix is None:
        raise Tdmr1Error(
            f"ComfyUI has no names for LoRA files of the family {model_files.family.name}",
            "export without --comfyui",
            code="setting-conflict",
            values={"family": model_files.family.name},
        )
    call = backbone.sampling_call(engine.sigmas, engine.size, engine.entry.max_sequence_length)
    building, is_new = folder / ".export.tmp", not folder.exists()
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        metadata = _metadata(engine, model_files, call)
        write_lora(engine.roles, GENERATOR_EMA, building, metadata)
        if comfy:
            write_comfy_lora(engine.roles, GENERATOR_EMA, building, metadata, model_files.family)
        difference, images = _compare(engine, backbone, model_files, building, call)
        if difference > 1:
            raise Tdmr1Error(
                f"the exported LoRA does not reproduce the images of the run: a pixel differs by {difference} of 255, "
                "expected at most 1",
                "nothing was written; please report this with the output of `tdmr1 doctor`",
                code="export-mismatch",
                values={"difference": difference, "images": images},
            )
        card = model_card(model_files, metadata, call, engine.prompts[0].text, difference, images)
        written = {folder / name: (building / name).read_bytes() for name in names if name != CARD}
        write_results({**written, folder / CARD: redact(card).encode()})
    except OSError as error:
        reason = error.strerror or one_line(str(error))  # diffusers raises some without an error number
        raise Tdmr1Error(
            f"{folder} cannot be written: {reason}",
            "choose another --output",
            code="not-writable",
            values={"path": str(folder), "reason": reason},
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
    return Exported(folder / WEIGHT_FILE, folder / COMFY_FILE if comfy else None, difference, images, call)


def file_names(*, comfy: bool) -> list[str]:
    """The names of the files that an export writes."""
    return [WEIGHT_FILE, CARD, *([COMFY_FILE] if comfy else [])]


def exported_of(folder: Path, iteration: int, config_hash: str | None = None) -> Path | None:
    """The exported LoRA in a folder, if its metadata names this iteration and these settings; otherwise None.

    Without `config_hash`, the settings are not compared.
    """
    file = folder / WEIGHT_FILE
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError):
        return None
    same_settings = config_hash is None or metadata.get("tdmr1.config_hash") == config_hash
    return file if metadata.get("tdmr1.iteration") == str(iteration) and same_settings else None


def _metadata(engine: Engine, model_files: ModelFiles, call: SamplingCall) -> dict[str, str]:
    """The metadata of the LoRA file, as text, without the adapter config that diffusers reads."""
    config = engine.config
    values = {
        "base_model": public_name(engine.entry.base),
        "base_revision": model_files.revision or "",
        "family": model_files.family.name,
        "iteration": engine.iteration_index,
        "steps": engine.steps,
        "shift": engine.shift,
        "sampler": config.rollout.sampler,
        "noise_levels": engine.sigmas[:-1].tolist(),
        "guidance": 1.0,
        "adapter_scale": 1.0,
        "rank": engine.roles.shape.rank,
        "alpha": engine.roles.shape.alpha,
        "rewards": {reward.name: reward.weight for reward in config.rewards},
        "config_hash": fingerprint(config),
        "started_from": None if model_files.lora_record is None else model_files.lora_record["sha256"],
        "pipeline_call": call.arguments,
        **({"scheduler": call.scheduler} if call.scheduler else {}),
        "versions": versions(),
    }
    shown = redact_texts(values)
    return {f"tdmr1.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in shown.items()}


def _compare(
    engine: Engine, backbone: PipelineBackbone, model_files: ModelFiles, lora: Path, call: SamplingCall
) -> tuple[int, int]:
    """Compare the engine's images with those of a diffusers pipeline that loaded the exported file.

    Returns the largest pixel difference and the number of images. The pipeline has a denoiser newly read from disk.
    Both use Euler steps and the same precision, so that rounding does not differ.
    """
    prompts, seed = engine.prompts[:COMPARED_PROMPTS], engine.config.evaluation.seed
    pipeline = backbone.pipeline_with_denoiser(model_files.folder)
    pipeline.load_lora_weights(lora, weight_name=WEIGHT_FILE)
    pipeline.transformer.to(dtype=backbone.dtype)
    call.prepare(pipeline)
    shape = backbone.latent_shape(*engine.size)
    largest = 0
    for prompt in prompts:
        with backbone.exact():
            ours = sample_images(engine, GENERATOR_EMA, [prompt], COMPARED_IMAGES, seed, sampler="euler").images
        noise = evaluation_noise([prompt], COMPARED_IMAGES, seed, shape)
        with torch.no_grad():
            theirs = pipeline(
                **backbone.call_arguments(engine.conditioning([prompt])),
                **call.arguments,
                num_images_per_prompt=COMPARED_IMAGES,
                latents=backbone.pipeline_latents(noise.to(device=backbone.device, dtype=backbone.dtype)),
                output_type="np",
            ).images
        largest = max(largest, int(np.abs((theirs * 255).round().astype(int) - ours.astype(int)).max()))
    return largest, len(prompts) * COMPARED_IMAGES
