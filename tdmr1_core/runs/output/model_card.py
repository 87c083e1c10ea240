"""The README.md of an exported LoRA: what it is, how to draw with it, and what was checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tdmr1_core.models.loading import ModelFiles
from tdmr1_core.models.lora.metadata import WEIGHT_FILE


def model_card(
    model_files: ModelFiles,
    metadata: Mapping[str, str],
    call: Mapping[str, Any],
    prompt: str,
    largest_difference: int,
    images: int,
) -> str:
    """A model card with the front matter of the hub and a script that draws the same pictures as the run."""
    entry = model_files.entry
    told = {name.removeprefix("tdmr1."): value for name, value in metadata.items()}
    rewards = json.loads(told["rewards"])
    trained = (
        f"reinforced with {', '.join(f'`{name}` (weight {weight:g})' for name, weight in rewards.items())}"
        if rewards
        else "distilled from its multi-step teacher, without any reward"
    )
    revision = f" at revision `{model_files.revision}`" if model_files.revision else ""
    started = model_files.lora.path.name if model_files.lora else "the base itself"
    front = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": ["lora", "tdmr1", "few-step"]}
    if "/" in entry.base and not entry.base.startswith("/"):
        front |= {"base_model": entry.base}
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in front.items()),
        "---",
        "",
        f"# {entry.name}, {trained}",
        "",
        f"A LoRA for `{entry.base}`{revision}, which draws in {told['steps']} steps without guidance. It began as",
        f"{started} and was trained for {told['iteration']} iterations of tdmr1 (settings {told['config_hash']}).",
        "Its adapter scale is 1: nothing is to be multiplied.",
        "",
        "```python",
        *script(model_files, call, prompt).splitlines(),
        "```",
        "",
        f"Before it was written, a pipeline freshly read from disk drew {images} of the run's own pictures with it;",
        f"the largest difference of a pixel was {largest_difference} of 255.",
        "",
        *_other_sampler(told["sampler"]),
        f"The base's licence ({entry.licence}) applies to what is made with it.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | `{value}` |" for name, value in told.items() if name not in ("versions", "pipeline_call")),
    ]
    return "\n".join(lines) + "\n"


def _other_sampler(sampler: str) -> list[str]:
    """What is to be known of a run that did not sample as the call above does."""
    if sampler == "euler":
        return []
    return [f"The run sampled with {sampler}; the call above takes Euler steps on the same noise levels.", ""]


def script(model_files: ModelFiles, call: Mapping[str, Any], prompt: str) -> str:
    """A script without tdmr1 that draws a picture with the LoRA beside it."""
    absent = "".join(f", {name}=None" for name in model_files.absent)
    arguments = "".join(f"    {name}={value!r},\n" for name, value in call.items())
    return (
        f"import torch\n"
        f"from diffusers import {model_files.family.pipeline}\n"
        f"\n"
        f"pipeline = {model_files.family.pipeline}.from_pretrained({model_files.entry.base!r}{absent})\n"
        f'pipeline.load_lora_weights(".", weight_name="{WEIGHT_FILE}")\n'
        f"picture = pipeline(\n"
        f"    {prompt!r},\n"
        f"{arguments}"
        f"    generator=torch.Generator().manual_seed(0),\n"
        f").images[0]\n"
        f'picture.save("picture.png")\n'
    )
