"""`tdmr1 export`: a run's trained model as a diffusers LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdmr1_cli.options import Flags, JsonOption
from tdmr1_cli.output import data, emit_json, message
from tdmr1_cli.run_command import check_writable
from tdmr1_cli.signals import leaving_on_sigterm
from tdmr1_cli.targets import RunArgument, check_run, load_target


def command(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where the LoRA goes; RUN/export if left out.")
    ] = None,
    comfy: Annotated[bool, typer.Option("--comfyui", help="Write it with ComfyUI's (kohya's) keys as well.")] = False,
    json: JsonOption = False,
) -> None:
    """Write the trained model as a LoRA that diffusers loads.

    It is written only after a clean pipeline has drawn the same pixels with it.
    """
    check_run(run)
    folder = output or run / "export"
    check_writable(folder)
    with leaving_on_sigterm():
        loaded = load_target(str(run), Flags(), judged=False)
        from tdmr1_core.runs.output.export import export_lora

        exported = export_lora(loaded.engine, folder, comfy=comfy)
        loaded.engine.close()
    engine = loaded.engine
    if json:
        emit_json(
            {
                "file": str(exported.file),
                "comfyui_file": exported.comfy_file and str(exported.comfy_file),
                "base": engine.entry.base,
                "iteration": engine.iteration_index,
                "noise_levels": engine.sigmas[:-1].tolist(),
                "call": exported.call,
                "largest_difference": exported.largest_difference,
                "images_compared": exported.images,
            }
        )
        return
    data(str(exported.file))
    difference = f"largest difference: {exported.largest_difference} of 255"
    message(f"a clean pipeline drew the same {exported.images} pictures with it ({difference})")
    if exported.comfy_file is not None:
        data(str(exported.comfy_file))
    message(f"how to draw with it in diffusers: {folder / 'README.md'}")
