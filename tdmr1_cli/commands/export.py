"""`tdmr1 export`: the trained model of a run as a diffusers LoRA, in a folder and on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tdmr1_cli.options import JsonOption, ModelPathOption, SetOption
from tdmr1_cli.output import data, emit_json, message, table
from tdmr1_cli.signals import sigterm_as_interrupt
from tdmr1_cli.targets import FoundTarget, RunArgument, check_run, find_target
from tdmr1_core.durable_files import check_writable
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.preflight.layers import Flags


def command(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="The folder of the LoRA (default: RUN/export).")
    ] = None,
    comfy: Annotated[bool, typer.Option("--comfyui", help="Also write the LoRA with ComfyUI (kohya) keys.")] = False,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="OWNER/NAME", help="Upload the files to this repository of the hub."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: the repository is private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --push: export, print what would be uploaded, and upload nothing.")
    ] = False,
    model_path: ModelPathOption = None,
    sets: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Write the trained model as a LoRA that diffusers loads.

    The LoRA is written only after a fresh diffusers pipeline has reproduced the run's images with it. Only the run
    folder and the base model are needed; --model-path names a base model that was moved. With --push, an export that
    is already in the folder is uploaded as it is, with the changes that you made to its README.md.
    """
    check_run(run)
    _check_push(push, private, dry_run)
    folder = output or run / "export"
    check_writable(folder)
    with sigterm_as_interrupt():
        found = find_target(str(run), Flags(sets=sets or (), model_path=model_path), needs_reward=False)
        document = _former_export(run, found, folder, comfy) if push is not None else None
        if document is None:
            document = _export(found, folder, comfy, quiet=json)
        if push is not None:
            document["push"] = _push(push, folder, comfy, private, dry_run, quiet=json)
    if json:
        emit_json(document)


def _check_push(push: str | None, private: bool, dry_run: bool) -> None:
    """Raise Tdmr1Error for options that need --push, and for an upload that cannot succeed. Contacts nothing."""
    if push is None:
        for option, is_given in (("--private", private), ("--dry-run", dry_run)):
            if is_given:
                raise Tdmr1Error(
                    f"{option} needs --push",
                    f"name the repository: --push OWNER/NAME {option}",
                    code="usage",
                    values={"option": option},
                )
        return
    from tdmr1_core.runs.output.push import check_access, check_repository

    check_repository(push)
    if not dry_run:
        check_access(push)


def _former_export(run: Path, found: FoundTarget, folder: Path, comfy: bool) -> dict[str, Any] | None:
    """The document of the files in `folder`, if they are an export of the latest checkpoint; otherwise None."""
    from tdmr1_core.config_loading import fingerprint
    from tdmr1_core.models.lora.files import COMFY_FILE
    from tdmr1_core.runs.checkpoints.checkpoint import iteration_of, latest_checkpoint
    from tdmr1_core.runs.checkpoints.resume import CHECKPOINTS
    from tdmr1_core.runs.output.export import exported_of, file_names

    iteration = iteration_of(latest_checkpoint(run / CHECKPOINTS))
    file = exported_of(folder, iteration, fingerprint(found.resolved.config))
    if file is None or not all((folder / name).is_file() for name in file_names(comfy=comfy)):
        return None
    message(f"{folder} already holds the LoRA of iteration {iteration}")
    return {
        "file": str(file),
        "comfyui_file": str(folder / COMFY_FILE) if comfy else None,
        "base": found.resolved.entry.base,
        "iteration": iteration,
    }


def _export(found: FoundTarget, folder: Path, comfy: bool, *, quiet: bool) -> dict[str, Any]:
    """Export the LoRA of a run, print the files unless `quiet`, and return the JSON document."""
    loaded = found.load()
    from tdmr1_core.runs.output.export import CARD, export_lora

    engine = loaded.engine
    exported = export_lora(engine, folder, comfy=comfy)
    engine.close()
    if not quiet:
        data(str(exported.file))
        difference = f"largest difference: {exported.largest_difference} of 255"
        message(f"a fresh diffusers pipeline reproduced {exported.images} images with it ({difference})")
        if exported.comfy_file is not None:
            data(str(exported.comfy_file))
        message(f"how to use it in diffusers: {folder / CARD}")
    return {
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


def _push(repository: str, folder: Path, comfy: bool, private: bool, dry_run: bool, *, quiet: bool) -> dict[str, Any]:
    """Upload the files of an export, print the result unless `quiet`, and return its part of the JSON document."""
    from tdmr1_core.runs.output.export import file_names
    from tdmr1_core.runs.output.push import push_export

    sizes = {name: (folder / name).stat().st_size for name in file_names(comfy=comfy)}
    url = None if dry_run else push_export(folder, list(sizes), repository, private=private)
    if not quiet and url is not None:
        data(url)
    elif not quiet:
        kind = "private" if private else "public, unless its owner has another default"
        title = f"nothing was uploaded; --push {repository} would upload these files (a new repository is {kind}):"
        table(["file", "bytes"], [[name, str(size)] for name, size in sizes.items()], title=title)
    return {
        "repository": repository,
        "private": private,
        "dry_run": dry_run,
        "files": [{"name": name, "bytes": size} for name, size in sizes.items()],
        "url": url,
    }
