"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdmr1_core.settings.bounds import MOST_WORKERS

ConfigArgument = Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", help="A settings file.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="A model (`tdmr1 models list`), a pipeline directory or a hub id."),
]
RewardOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="[NAME=]SOURCE[:WEIGHT]",
        help="A reward of `tdmr1 rewards list`, file.py:fn, package.module:fn or remote:URL; may be repeated.",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="PRESET", help="Packaged settings (`tdmr1 config presets`), or none."),
]
PromptsOption = Annotated[
    str | None,
    typer.Option("--prompts", metavar="SET|FILE|hf:…", help="Training prompts: a set, a file or a dataset of the hub."),
]
IterationsOption = Annotated[int | None, typer.Option("--iterations", metavar="N", help="Iterations of the whole run.")]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of all random draws.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", help="The run folder (default: runs/<model>-<rewards>-<time>)."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Any setting (`tdmr1 config show`); may be repeated."),
]
ModelPathOption = Annotated[
    Path | None,
    typer.Option("--model-path", metavar="DIR", help="The base pipeline's directory, in place of the model's own."),
]
LoraOption = Annotated[
    Path | None,
    typer.Option("--lora", metavar="FILE", help="The few-step LoRA to start from, in place of the model's own."),
]
ResumeOption = Annotated[
    Path | None, typer.Option("--resume", metavar="RUN", help="Resume this run folder at its latest checkpoint.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the settings and the estimate of `tdmr1 plan`; load no weights.")
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes", metavar="N", min=1, max=MOST_WORKERS, help="Divide the groups among N processes, one GPU each."
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
