"""Fingerprints of a run's external inputs: prompts, rewards, base model and LoRA. Only their content counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import dump, fingerprint, read_file
from tdmr1_core.durable_files import replace_durable
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.models.loading import ModelFiles, identity
from tdmr1_core.preflight.resolved import ResolvedRun
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.versions import versions

CONFIG, HEADER = "config.yaml", "tdmr1"
TRAINING, EVALUATIONS = "the training", "evaluations"


class Fingerprints(BaseModel):
    """Fingerprints of the prompts by their use, and of each reward by its name in the settings."""

    model_config = ConfigDict(strict=True, frozen=True)

    prompts: dict[str, str] = {}
    rewards: dict[str, str] = {}


class Header(Fingerprints):
    """The section `tdmr1` of a run's config.yaml: the inputs that the run began with. It holds no settings."""

    versions: dict[str, str] = {}
    config_hash: str | None = None
    base: str | None = None
    lora: dict[str, Any] | None = None


def fingerprint_inputs(resolved: ResolvedRun) -> Fingerprints:
    """The fingerprints of a run's prompts and rewards. Rewards that are used without being named have none."""
    config, sets = resolved.config, resolved.evaluation_prompts
    listed = {
        "": resolved.rewards,
        "evaluation.": resolved.evaluation_rewards if config.evaluation.rewards else (),
        "guard.": resolved.held_out_rewards if config.guard.rewards else (),
    }
    return Fingerprints(
        prompts=dict(zip((TRAINING, EVALUATIONS), (_hash(each.prompts) for each in sets), strict=False)),
        rewards={
            place + reward.config.name: reward.registered.fingerprint(reward.config.python)
            for place, rewards in listed.items()
            for reward in rewards
        },
    )


def _hash(prompts: Sequence[Prompt]) -> str:
    """The SHA-256 of prompts and their metadata, in their order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update((json.dumps([prompt.text, prompt.metadata], sort_keys=True, default=str) + "\n").encode())
    return digest.hexdigest()


def subject_fingerprint(config: RunConfig, inputs: Fingerprints) -> str:
    """A hash of everything that determines which images the guard measures, and with which rewards."""
    settings = dump(config)
    subject = {name: settings["evaluation"][name] for name in ("seed", "images", "rewards")}
    subject |= {"guard": settings["guard"]["rewards"], "contents": inputs.model_dump()}
    return hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:16]


def write_config(folder: Path, config: RunConfig, inputs: Fingerprints, model_files: ModelFiles | None) -> None:
    """Write the config.yaml of a new run: the header with its inputs, then the settings."""
    packages = versions()
    settings, config_hash = dump(config), fingerprint(config)
    header = Header(
        **inputs.model_dump(),
        versions=packages,
        config_hash=config_hash,
        base=identity(model_files) if model_files else None,
        lora=model_files.lora.record if model_files and model_files.lora else None,
    )
    text = yaml.safe_dump({HEADER: header.model_dump(exclude_none=True)}, sort_keys=False)
    replace_durable(folder / CONFIG, (text + yaml.safe_dump(settings, sort_keys=False)).encode())


def update_config(folder: Path, config: RunConfig) -> None:
    """Write the config.yaml of a run again with other settings. Its header keeps the inputs that the run began with."""
    header = {**(read_file(folder / CONFIG).get(HEADER) or {}), "config_hash": fingerprint(config)}
    tree = {HEADER: header, **dump(config)}
    replace_durable(folder / CONFIG, yaml.safe_dump(tree, sort_keys=False).encode())


def read_header(folder: Path) -> Header:
    """The inputs that a run began with. Raises Tdmr1Error for a header that no run wrote."""
    path = folder / CONFIG
    try:
        return Header.model_validate(read_file(path).get(HEADER) or {})
    except ValidationError as error:
        first = error.errors()[0]
        entry, found = ".".join(map(str, (HEADER, *first["loc"]))), str(first["input"])
        expected = "text" if first["type"] == "string_type" else "a mapping"
        raise Tdmr1Error(
            f"{entry} in {path} has an invalid value: found {found}, expected {expected}",
            "restore the file; only the settings below its header may be edited",
            code="config-incomplete",
            values={"path": str(path), "entry": entry, "found": found, "expected": expected},
        ) from error


def differences(began: Fingerprints, now: Fingerprints) -> list[RunWarning]:
    """A warning for each input that changed since the run began, and may change.

    Raises Tdmr1Error if the training prompts changed, because the run depends on their order.
    """
    if not began.prompts:
        return [
            RunWarning(
                f"{CONFIG} has no fingerprints of prompts and rewards, so they are not compared", code="resume-inputs"
            )
        ]
    changed = {name for name, value in now.prompts.items() if began.prompts.get(name, value) != value}
    if TRAINING in changed:
        raise Tdmr1Error(
            "the training prompts are not those that the run began with",
            "restore them, or start a new run",
            code="resume-inputs",
            values={"input": "training prompts"},
        )
    warnings = [
        RunWarning(
            f"the prompts of {name} are not those that the run began with",
            code="resume-inputs",
            values={"input": f"prompts of {name}"},
        )
        for name in sorted(changed)
    ]
    for name, value in now.rewards.items():
        before = began.rewards.get(name, value)
        if before != value:
            message = f"reward {name} has changed since the run began: it was {before}, it is {value}"
            values = {"input": f"reward {name}", "before": before, "now": value}
            warnings.append(RunWarning(message, code="resume-inputs", values=values))
    return warnings


def check_same_base(folder: Path, model_files: ModelFiles | None) -> None:
    """Raise Tdmr1Error if the base model or the teacher is not the one that the run began with."""
    if model_files is not None and read_header(folder).base not in (None, identity(model_files)):
        raise Tdmr1Error(
            f"the model in {model_files.folder} is not the one that the run began with: other configs or weight files",
            "set model.path in the run's config.yaml to the original model, or start a new run",
            code="resume-inputs",
            values={"input": "model", "path": str(model_files.folder)},
        )


def check_same_lora(folder: Path, model_files: ModelFiles | None) -> None:
    """Raise Tdmr1Error if the LoRA is not the one that the run began with, or if one was added or removed."""
    header = read_header(folder)
    if model_files is None or header.base is None:
        return
    began, lora = (header.lora or {}).get("sha256"), model_files.lora
    now = lora.sha256 if lora else None
    if began == now:
        return
    found = f"the LoRA {lora.path} is not the one that the run began with" if lora else "the LoRA of the run is missing"
    hint = f"restore the LoRA with sha256 {str(began)[:16]}…" if began else "remove model.lora: the run had no LoRA"
    raise Tdmr1Error(
        found,
        f"{hint}, or start a new run",
        code="resume-inputs",
        values={"input": "lora", "path": str(lora.path) if lora else None, "before": began, "now": now},
    )
