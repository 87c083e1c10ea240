"""The README.md of an exported LoRA: what it is, how to use it, and how it was checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from tdmr1_core.models.loading import ModelFiles
from tdmr1_core.models.lora.metadata import WEIGHT_FILE
from tdmr1_core.models.pipeline import SamplingCall
from tdmr1_core.models.pipeline_files import hub_id_of, public_name
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.runs.output.front_matter import UNKNOWN, front_matter
from tdmr1_rewards.texts.documents import parse_json


def model_card(
    model_files: ModelFiles,
    metadata: Mapping[str, str],
    call: SamplingCall,
    prompt: str,
    largest_difference: int,
    images: int,
) -> str:
    """A model card with the front matter of the Hugging Face hub and a script that samples as the run does."""
    entry = model_files.entry
    details = {name.removeprefix("tdmr1."): value for name, value in metadata.items()}
    rewards = parse_json(details["rewards"])
    trained = (
        f"reinforced with {', '.join(f'`{name}` (weight {weight:g})' for name, weight in rewards.items())}"
        if rewards
        else "distilled from its multi-step teacher, without any reward"
    )
    revision = f" at revision `{model_files.revision}`" if model_files.revision else ""
    origin = f"the LoRA {Path(model_files.lora_record['file']).name}" if model_files.lora_record else "the base model"
    base = public_name(entry.base)
    licence = "" if entry.licence == UNKNOWN else f" ({entry.licence})"
    lines = [
        "---",
        *yaml.safe_dump(front_matter(entry), sort_keys=False, allow_unicode=True).splitlines(),
        "---",
        "",
        f"# {entry.name}, {trained}",
        "",
        f"A LoRA for `{base}`{revision}. It samples in {details['steps']} steps without guidance. It was trained",
        f"from {origin} for {details['iteration']} iterations of tdmr1 (settings {details['config_hash']}).",
        "Use it with an adapter scale of 1.",
        *_local_base(entry, base),
        "",
        "```python",
        *script(model_files, call, prompt).splitlines(),
        "```",
        "",
        f"The export was checked: a new diffusers pipeline with this LoRA reproduced {images} images of the run. The",
        f"largest difference of a pixel value was {largest_difference} (of 0 to 255).",
        "",
        *_other_sampler(details["sampler"]),
        f"The license of the base model{licence} applies to this LoRA and to its images.",
        "",
        "| | |",
        "|---|---|",
        *(
            f"| {name} | `{value}` |"
            for name, value in details.items()
            if name not in ("versions", "pipeline_call", "scheduler")
        ),
    ]
    return "\n".join(lines) + "\n"


def _local_base(entry: ModelEntry, base: str) -> list[str]:
    """A note if the script has a placeholder in place of a local directory."""
    return [] if hub_id_of(entry.base) else [f"Replace `{base}` with the directory of the base model."]


def _other_sampler(sampler: str) -> list[str]:
    """A note if the run used another sampler than the script."""
    if sampler == "euler":
        return []
    return [f"The run sampled with {sampler}; the script above uses Euler steps on the same noise levels.", ""]


def script(model_files: ModelFiles, call: SamplingCall, prompt: str) -> str:
    """A Python script without tdmr1 that samples an image with the LoRA file in the same folder.

    The local directory of a base that is not on the hub is replaced by `path/to/NAME`.
    """
    absent = "".join(f", {name}=None" for name in model_files.absent)
    arguments = "".join(f"    {name}={value!r},\n" for name, value in call.arguments.items())
    changes = "".join(f", {name}={value!r}" for name, value in call.scheduler.items())
    scheduler = (
        f"kind = type(pipeline.scheduler)\npipeline.scheduler = kind.from_config(pipeline.scheduler.config{changes})\n"
    )
    return (
        f"import torch\n"
        f"from {model_files.family.module} import {model_files.family.pipeline}\n"
        f"\n"
        f"pipeline = {model_files.family.pipeline}.from_pretrained({public_name(model_files.entry.base)!r}{absent})\n"
        f'pipeline.load_lora_weights(".", weight_name="{WEIGHT_FILE}")\n'
        f"{scheduler if changes else ''}"
        f"image = pipeline(\n"
        f"    prompt={prompt!r},\n"
        f"{arguments}"
        f"    generator=torch.Generator().manual_seed(0),\n"
        f").images[0]\n"
        f'image.save("image.png")\n'
    )
