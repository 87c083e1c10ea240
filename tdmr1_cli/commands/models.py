"""`tdmr1 models`: which models there are."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import emit_json, fields, table
from tdmr1_core.models.entry import SAME
from tdmr1_core.models.families import FAMILIES

if TYPE_CHECKING:
    from tdmr1_core.models.entry import ModelEntry

app = typer.Typer(name="models", help="List models and look at one.", rich_markup_mode=None)


@app.command("list")
def list_models(json: JsonOption = False) -> None:
    """The models that can be trained by name."""
    from tdmr1_core.plugins import discover

    entries = discover().models.entries()
    if json:
        emit_json([_document(entry) for entry in entries])
        return
    rows = [
        [
            entry.name,
            entry.summary,
            f"{entry.width}×{entry.height}",
            str(entry.steps),
            _size(entry.download_gb) if entry.download_gb else "none",
            _size(entry.weights_gb),
            entry.licence + (" (gated)" if entry.gated else ""),
            entry.distribution,
        ]
        for entry in entries
    ]
    table(["model", "what it is", "pixels", "steps", "download", "frozen weights", "licence", "from"], rows)


@app.command()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, a pipeline directory or a hub id.")],
    json: JsonOption = False,
) -> None:
    """Everything known of one model."""
    from tdmr1_core.plugins import discover

    entry = discover().models.get(name)
    if json:
        emit_json(_document(entry))
    else:
        fields(_described(entry))


def _document(entry: ModelEntry) -> dict[str, Any]:
    """An entry as plain data, with what follows from it."""
    family = FAMILIES[entry.family]
    own = {"pipeline": family.pipeline, "no_guidance": family.no_guidance, "settings": entry.settings}
    return {**asdict(entry), **own}


def _described(entry: ModelEntry) -> list[tuple[str, str]]:
    """An entry as names and sentences."""
    family = FAMILIES[entry.family]
    lora = entry.lora or (
        "none published: give one with --lora" if entry.needs_lora else "none: it takes few steps itself"
    )
    if entry.lora and entry.adapter_scale != 1:
        lora += f", adapter scale {entry.adapter_scale:g}"
    guidance = "no more guidance" if entry.teacher_guidance == 1 else f"guidance {entry.teacher_guidance:g}"
    return [
        ("model", f"{entry.name}: {entry.summary}"),
        ("from", entry.distribution),
        ("family", f"{entry.family} ({family.pipeline})"),
        ("base", entry.base + (" (gated: its licence must be accepted on the hub)" if entry.gated else "")),
        ("few-step LoRA", lora),
        ("teacher", "the base itself" if entry.teacher == SAME else entry.teacher),
        ("pictures", f"{entry.width}×{entry.height} pixels"),
        ("schedule", f"{entry.steps} steps, shift {entry.shift:g}, no guidance"),
        ("in diffusers", f"guidance_scale={family.no_guidance:g}, max_sequence_length={entry.max_sequence_length}"),
        ("teacher's schedule", f"{entry.teacher_steps} steps, {guidance}"),
        ("new LoRAs", f"rank {entry.rank}, alpha {entry.alpha:g}, on {', '.join(entry.targets)}"),
        ("precision", entry.precision),
        ("licence", entry.licence),
        ("download", f"about {_size(entry.download_gb)}" if entry.download_gb else "none"),
        ("memory", f"about {_size(entry.weights_gb)} of frozen weights in bf16; training needs more"),
        ("default reward", entry.default_reward or "none: name one with --reward"),
        ("default preset", entry.default_preset or "the reward's own"),
    ]


def _size(gigabytes: float) -> str:
    return f"{gigabytes:g} GB" if gigabytes else "unknown"
