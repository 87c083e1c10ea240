"""`tdmr1 export`: a run's trained model as a diffusers LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdmr1_cli.options import Flags, JsonOption
from tdmr1_cli.output import data, emit_json, message
from tdmr1_cli.running import check_writable
from tdmr1_cli.targets import RunArgument, check_run, load_target


def command(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where the LoRA goes; RUN/export if left out.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the trained model as a LoRA that diffusers loads.

    It is written only after a clean pipeline has drawn the same pixels with it.
    """
    check_run(run)
    folder = output or run / "export"
    check_writable(folder)
    loaded = load_target(str(run), Flags(), judged=False)
    from tdmr1_core.runs.export import export_lora

    exported = export_lora(loaded.engine, folder)
    loaded.engine.close()
    engine = loaded.engine
    if json:
        emit_json(
            {
                "file": str(exported.file),
                "base": engine.entry.base,
                "iteration": engine.iteration_index,
                "sigmas": engine.sigmas[:-1].tolist(),
                "largest_difference": exported.largest_difference,
                "images_compared": exported.images,
            }
        )
        return
    data(str(exported.file))
    difference = f"largest difference: {exported.largest_difference} of 255"
    message(f"a clean pipeline drew the same {exported.images} pictures with it ({difference})")
    sigmas = ", ".join(f"{sigma:.4g}" for sigma in engine.sigmas[:-1].tolist())
    message(f"in diffusers: pipeline.load_lora_weights({str(folder)!r}), then sigmas=[{sigmas}], guidance_scale=1.0")
