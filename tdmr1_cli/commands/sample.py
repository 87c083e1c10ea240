"""`tdmr1 sample`: samples images with a run, a model or a pipeline directory."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.options import JsonOption, LoraOption, ModelPathOption, SetOption
from tdmr1_cli.output import data, emit_json, message, print_warnings
from tdmr1_cli.targets import Target, TargetArgument, is_run, load_target
from tdmr1_core.durable_files import check_writable
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.preflight.layers import Flags
from tdmr1_core.settings.bounds import LARGEST_NUMBER, LARGEST_SEED, MOST_IMAGES, MOST_STEPS
from tdmr1_rewards.texts.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tdmr1_core.records import Prompt
    from tdmr1_core.runs.evaluation.evaluate import EvaluationImages
    from tdmr1_core.runs.missing_inputs import Needed

GRID = "grid.png"
METADATA = "metadata.jsonl"


class SampledRole(StrEnum):
    """The role that samples."""

    generator = "generator"
    teacher = "teacher"
    start = "start"


def command(
    target: TargetArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="DIR",
            help="The folder of the PNG files (default: RUN/samples-<time>, or samples-<model>-<time>); no file is "
            "overwritten.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A prompt; may be repeated.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="SET|FILE", help="Prompts: a prompt set or a file.")
    ] = None,
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=1, max=MOST_IMAGES, help="Images for each prompt.")
    ] = 4,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="Seed of the initial noise.")
    ] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="K", min=1, max=MOST_STEPS, help="Sampling steps (default: those of the model)."
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            metavar="G",
            min=1,
            max=LARGEST_NUMBER,
            help="Guidance scale; 1 means no guidance.",
        ),
    ] = None,
    role: Annotated[
        SampledRole,
        typer.Option("--role", help="The trained generator, the teacher, or the model that the run started from."),
    ] = SampledRole.generator,
    model_path: ModelPathOption = None,
    lora: LoraOption = None,
    sets: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Sample images and write them as PNG files, with a grid of all images and the prompts in metadata.jsonl.

    The same seed and prompt give the same initial noise for every role, so that images can be compared one by one.
    """
    if not prompt and prompts is None:
        raise Tdmr1Error(
            "no prompt is given",
            'give one with --prompt "two red circles" or --prompts SET',
            code="usage",
        )
    output = output or default_folder(target)
    check_writable(output)
    _reject_existing([output / GRID, output / METADATA])
    texts = list(prompt or [])
    for text in texts:
        check_prompt(text)
    flags = Flags(sets=sets or (), model_path=model_path, lora=lora)
    with _prompt_file(target, texts, prompts, flags) as flags:
        loaded = load_target(target, flags, needs_reward=False, needed=lambda config, extensions: _needed(role))
    wanted = _prompts_to_sample(loaded, texts, prompts)
    _warn_of_truncated(wanted, loaded)
    files = [output / name for name in _file_names([each.text for each in wanted], images)]
    _reject_existing(files)
    sampled = _draw(loaded, role, wanted, images, seed, steps, guidance)
    _save(sampled, files, output, images)
    loaded.engine.close()
    if json:
        emit_json(_document(sampled, files, output, role, seed))
    else:
        for path in files:
            data(str(path))
        message(f"all of them: {output / GRID}")


def default_folder(target: str) -> Path:
    """A new folder in the run, or that of a model or pipeline in the working folder."""
    now = time.strftime("%Y%m%d-%H%M%S")
    base = Path(target) / f"samples-{now}" if is_run(target) else Path(f"samples-{Path(target).name}-{now}")
    others = (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([base], others) if not folder.exists())


def _reject_existing(files: Sequence[Path]) -> None:
    used = [path for path in files if path.exists()]
    if used:
        raise Tdmr1Error(
            f"{used[0]} already exists",
            "choose another --output; nothing was overwritten",
            code="file-exists",
            values={"file": str(used[0])},
        )


@contextmanager
def _prompt_file(target: str, texts: Sequence[str], prompts: str | None, flags: Flags) -> Iterator[Flags]:
    """The flags of a model that is not a run, whose config names the prompts to sample."""
    if is_run(target):
        yield flags
    elif prompts is not None:
        yield replace(flags, prompts=prompts)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "prompts.json"
            path.write_text(json.dumps(texts[:1]), encoding="utf-8")
            yield replace(flags, prompts=str(path))


def _needed(role: SampledRole) -> Needed:
    """What sampling with a role of a run needs beside the base model."""
    from tdmr1_core.runs.missing_inputs import Needed

    return Needed(start=role is SampledRole.start, teacher=role is SampledRole.teacher)


def check_prompt(text: str) -> None:
    """Raise Tdmr1Error for an argument of --prompt that is not a prompt."""
    from tdmr1_core.prompts.files import find_fault

    if found := find_fault(text):
        raise Tdmr1Error(
            f"--prompt {text!r} is not a prompt: it is {found}",
            "give a text with at least one visible character",
            code="prompt-invalid",
            values={"prompt": text, "found": found},
        )


def _prompts_to_sample(loaded: Target, texts: Sequence[str], prompts: str | None) -> list[Prompt]:
    from tdmr1_core.prompts.sets import load_prompts
    from tdmr1_core.records import Prompt

    listed: Sequence[Prompt] = []
    if prompts is not None:
        engine = loaded.engine  # that of a model has loaded these prompts, that of a run its own
        listed = load_prompts(prompts, engine.entry.domain) if loaded.is_run else engine.prompts
    return [*(Prompt(text, {}) for text in texts), *listed]


def _warn_of_truncated(wanted: Sequence[Prompt], loaded: Target) -> None:
    from tdmr1_core.preflight.prompts import check_lengths
    from tdmr1_core.prompts.sets import PromptSet

    found = check_lengths(PromptSet("the images", tuple(wanted)), loaded.engine.roles.backbone.readers())
    print_warnings([found] if found else [])


def _file_names(texts: Sequence[str], images: int) -> list[str]:
    """A name such as `003-two-red-circles-01.png` for each image, prompt by prompt."""
    names = []
    for number, text in enumerate(map(redact, texts)):
        words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
        names += [f"{number:03d}-{words or 'prompt'}-{image:02d}.png" for image in range(images)]
    return names


def _draw(
    loaded: Target,
    role: SampledRole,
    wanted: list[Prompt],
    images: int,
    seed: int,
    steps: int | None,
    guidance: float | None,
) -> EvaluationImages:
    from tdmr1_core.runs.evaluation.roles import sample_role

    return sample_role(loaded.engine, role.value, wanted, images, seed, steps=steps, guidance_scale=guidance)


def _save(sampled: EvaluationImages, files: Sequence[Path], output: Path, columns: int) -> None:
    from PIL import Image

    from tdmr1_core.durable_files import write_results
    from tdmr1_core.runs.output.image_grids import grid, png

    images = {path: png(Image.fromarray(image)) for image, path in zip(sampled.images, files, strict=True)}
    others = {output / GRID: grid(sampled.images, columns), output / METADATA: _metadata(sampled, files).encode()}
    write_results(images | others)


def _metadata(sampled: EvaluationImages, files: Sequence[Path]) -> str:
    """The prompts as datasets have them (Hugging Face's imagefolder), and as `tdmr1 label` reads them."""
    drawn = zip(files, sampled.prompts, strict=True)
    lines = [{"file_name": path.name, "text": redact(prompt.text)} for path, prompt in drawn]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _document(
    sampled: EvaluationImages, files: Sequence[Path], output: Path, role: SampledRole, seed: int
) -> dict[str, Any]:
    drawn = zip(files, sampled.prompts, strict=True)
    return {
        "role": role.value,
        "seed": seed,
        "images": [{"file": str(path), "prompt": prompt.text} for path, prompt in drawn],
        "grid": str(output / GRID),
    }
