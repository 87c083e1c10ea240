"""`tdmr1 export`: the trained model of a run as a diffusers LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdmr1_cli.options import JsonOption, ModelPathOption, SetOption
from tdmr1_cli.output import data, emit_json, message
from tdmr1_cli.settings import Flags
from tdmr1_cli.signals import sigterm_as_interrupt
from tdmr1_cli.targets import RunArgument, check_run, load_target
from tdmr1_core.durable_files import check_writable


def command(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="The folder of the LoRA (default: RUN/export).")
    ] = None,
    comfy: Annotated[bool, typer.Option("--comfyui", help="Also write the LoRA with ComfyUI (kohya) keys.")] = False,
    model_path: ModelPathOption = None,
    sets: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Write the trained model as a LoRA that diffusers loads.

    The LoRA is written only after a fresh diffusers pipeline has reproduced the run's images with it. Only the run
    folder and the base model are needed; --model-path names a base model that was moved.
    """
    check_run(run)
    folder = output or run / "export"
    check_writable(folder)
    with sigterm_as_interrupt():
        loaded = load_target(str(run), Flags(sets=sets or (), model_path=model_path), needs_reward=False)
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
                "call": exported.call.arguments,
                "scheduler": exported.call.scheduler,
                "largest_difference": exported.largest_difference,
                "images_compared": exported.images,
            }
        )
        return
    data(str(exported.file))
    difference = f"largest difference: {exported.largest_difference} of 255"
    message(f"a fresh diffusers pipeline reproduced {exported.images} images with it ({difference})")
    if exported.comfy_file is not None:
        data(str(exported.comfy_file))
    message(f"how to use it in diffusers: {folder / 'README.md'}")
