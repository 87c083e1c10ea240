"""`tdmr1 models`: lists the models, describes one, and checks families against diffusers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import emit_json, fields, message, table, with_own_stdout
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.registry import SAME

if TYPE_CHECKING:
    from tdmr1_core.models.registry import ModelEntry

GATED = " (gated: you must accept its license on the hub)"

app = typer.Typer(name="models", help="List, describe or check models.", rich_markup_mode=None)


@app.command("list")
@with_own_stdout
def list_models(json: JsonOption = False) -> None:
    """List the registered models, with download size and license."""
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
    table(["model", "description", "pixels", "steps", "download", "frozen weights", "license", "from"], rows)


@app.command()
@with_own_stdout
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, a pipeline directory or a hub id.")],
    json: JsonOption = False,
) -> None:
    """Describe a model: its base, LoRA, teacher, sampling schedule, sizes and license."""
    from tdmr1_core.plugins import discover

    entry = discover().models.get(name)
    if json:
        emit_json(_document(entry))
    else:
        fields(_facts(entry))


@app.command()
@with_own_stdout
def check(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|DIR]", help="A model, or a pipeline directory (default: all families)."),
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Also train real weights for two iterations.")] = False,
    json: JsonOption = False,
) -> None:
    """Compare a model family with the pipeline of diffusers.

    Without a name, every family is checked on a tiny pipeline with random weights, which is made for it. A model whose
    weights are on this machine is checked with them; nothing is downloaded. Ends with 1 if a check fails.
    """
    from tdmr1_cli.conformance import show
    from tdmr1_core.plugins import discover

    models = discover().models
    from tdmr1_core.conformance.table import check_directory, check_families, local_folder, require_family

    if name is None:
        found = check_families()
    else:
        entry = models.get(name)
        folder = local_folder(entry)
        if folder is None:
            require_family(entry.family)
            message(f"the weights of {entry.base} are not on this machine: a tiny pipeline of the family is checked")
            found = check_families([entry.family])
        else:
            found = ((entry.name, result) for result in check_directory(entry, folder, training=train))
    if not show(found, json=json):
        raise typer.Exit(1)


def _document(entry: ModelEntry) -> dict[str, Any]:
    """The entry as plain data, with its pipeline and the settings that it overrides."""
    family = FAMILIES[entry.family]
    derived = {"pipeline": family.pipeline, "no_guidance": family.no_guidance, "settings": entry.settings}
    return {**asdict(entry), **derived}


def _facts(entry: ModelEntry) -> list[tuple[str, str]]:
    """The entry as names and sentences."""
    family = FAMILIES[entry.family]
    lora = entry.lora or (
        "none is published: pass one with --lora" if entry.needs_lora else "not needed: the base is a few-step model"
    )
    if entry.lora and entry.adapter_scale != 1:
        lora += f", adapter scale {entry.adapter_scale:g}"
    shift = "the shift of the pipeline" if entry.shift is None else f"shift {entry.shift:g}"
    guidance = "no guidance" if entry.teacher_guidance == 1 else f"guidance {entry.teacher_guidance:g}"
    return [
        ("model", f"{entry.name}: {entry.summary}"),
        ("registered by", entry.distribution),
        ("family", f"{entry.family} ({family.pipeline})"),
        ("base", entry.base + (GATED if entry.gated else "")),
        ("few-step LoRA", lora),
        (
            "teacher",
            "the base itself" if entry.teacher == SAME else entry.teacher + (GATED if entry.teacher_gated else ""),
        ),
        ("images", f"{entry.width}×{entry.height} pixels"),
        ("sampling", f"{entry.steps} steps, {shift}, no guidance"),
        ("diffusers call", _call(entry)),
        ("teacher sampling", f"{entry.teacher_steps} steps, {guidance}"),
        ("trained LoRAs", f"rank {entry.rank}, alpha {entry.alpha:g}, on {', '.join(entry.targets)}"),
        ("precision", entry.precision),
        (
            "license",
            entry.licence if entry.teacher == SAME else f"{entry.licence}; of the teacher: {entry.teacher_licence}",
        ),
        ("download", f"about {_size(entry.download_gb)}" if entry.download_gb else "none"),
        ("memory", f"frozen weights: about {_size(entry.weights_gb)} in bf16; training needs more"),
        ("default reward", entry.default_reward or "none: choose one with --reward"),
        ("default preset", entry.default_preset or "the default preset of the reward"),
    ]


def _call(entry: ModelEntry) -> str:
    """The arguments of the pipeline that disable guidance and limit prompts."""
    family = FAMILIES[entry.family]
    length = f", max_sequence_length={entry.max_sequence_length}" if family.takes_length else ""
    return f"{family.guidance_argument}={family.no_guidance:g}{length}"


def _size(gigabytes: float) -> str:
    return f"{gigabytes:g} GB" if gigabytes else "unknown"
