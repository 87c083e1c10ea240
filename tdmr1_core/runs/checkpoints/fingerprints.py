"""Fingerprints of a run's external inputs: prompts, rewards, base model and LoRA. Only their content counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import compared, dump, fingerprint, read_file
from tdmr1_core.durable_files import replace_durable
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.models.loading import ModelFiles, content, identity
from tdmr1_core.preflight.option_paths import option_fingerprints
from tdmr1_core.preflight.resolved import ResolvedRun
from tdmr1_core.preflight.rewards import ResolvedReward
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.runs.checkpoints.run_config import (
    CONFIG,
    EVALUATIONS,
    HEADER,
    TRAINING,
    Fingerprints,
    Header,
    read_header,
)
from tdmr1_core.versions import versions


def fingerprint_inputs(resolved: ResolvedRun) -> Fingerprints:
    """The fingerprints of a run's prompts and rewards. Rewards that are used without being named have none."""
    config, sets = resolved.config, resolved.evaluation_prompts
    listed = {
        "": resolved.rewards,
        "evaluation.": resolved.evaluation_rewards if config.evaluation.rewards else (),
        "guard.": resolved.held_out_rewards if config.guard.rewards else (),
    }
    by_use = dict(zip((TRAINING, EVALUATIONS), sets, strict=False))
    return Fingerprints(
        prompts={use: _hash(each.prompts) for use, each in by_use.items()},
        commits={use: each.commit for use, each in by_use.items() if each.commit is not None},
        rewards={
            place + reward.config.name: reward.registered.fingerprint(reward.config.python)
            for place, rewards in listed.items()
            for reward in rewards
        },
        options=option_fingerprints(config) if _names_paths(listed) else {},
    )


def _names_paths(listed: Mapping[str, Sequence[ResolvedReward]]) -> bool:
    """Whether an option of a reward may be a path."""
    return any("/" in str(reward.config.options) for rewards in listed.values() for reward in rewards)


def _hash(prompts: Sequence[Prompt]) -> str:
    """The SHA-256 of prompts and their metadata, in their order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update((json.dumps([prompt.text, prompt.metadata], sort_keys=True, default=str) + "\n").encode())
    return digest.hexdigest()


def subject_fingerprint(config: RunConfig, inputs: Fingerprints) -> str:
    """A hash of everything that determines which images the guard measures, and with which rewards."""
    settings = compared(config)
    subject = {name: settings["evaluation"][name] for name in ("seed", "images", "rewards")}
    if config.evaluation.images_per_prompt is not None:  # earlier runs without the setting keep their hash
        subject["images_per_prompt"] = config.evaluation.images_per_prompt
    subject |= {"guard": settings["guard"]["rewards"], "contents": inputs.model_dump(include={"prompts", "rewards"})}
    subject = _without_folders(subject)
    return hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:16]


def _without_folders(tree: Any) -> Any:
    """Settings in which an absolute path has only its last part, because a moved file is the same."""
    if isinstance(tree, dict):
        return {key: _without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_folders(value) for value in tree]
    return Path(tree).name if isinstance(tree, str) and tree.startswith("/") else tree


def write_config(folder: Path, config: RunConfig, inputs: Fingerprints, model_files: ModelFiles | None) -> None:
    """Write the config.yaml of a new run: the header with its inputs, then the settings."""
    packages = versions()
    settings, config_hash = dump(config, folder), fingerprint(config)
    header = Header(
        **inputs.model_dump(),
        versions=packages,
        config_hash=config_hash,
        content=content(model_files) if model_files else {},
        lora=model_files.lora_record if model_files else None,
        package=_package(model_files),
    )
    text = yaml.safe_dump({HEADER: header.model_dump(exclude_defaults=True)}, sort_keys=False)
    replace_durable(folder / CONFIG, (text + yaml.safe_dump(settings, sort_keys=False)).encode())


def _package(model_files: ModelFiles | None) -> str | None:
    """The distribution of the plugin that registers the model or its family; None if both are part of tdmr1."""
    if model_files is None:
        return None
    found = {model_files.entry.distribution, model_files.family.distribution} - {"tdmr1"}
    return " and ".join(sorted(found)) or None


def update_config(folder: Path, config: RunConfig) -> None:
    """Write the config.yaml of a run again with other settings. Its header keeps the inputs that the run began with."""
    header = {**(read_file(folder / CONFIG).get(HEADER) or {}), "config_hash": fingerprint(config)}
    tree = {HEADER: header, **dump(config, folder)}
    replace_durable(folder / CONFIG, yaml.safe_dump(tree, sort_keys=False).encode())


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
    changed = {name for name in began.prompts | now.prompts if began.prompts.get(name) != now.prompts.get(name)}
    if TRAINING in changed:
        commit = began.commits.get(TRAINING)
        restore = f"name the commit that the run began with: --prompts hf:OWNER/DATASET@{commit}:COLUMN"
        raise Tdmr1Error(
            "the training prompts are not those that the run began with",
            f"{restore if commit else 'restore them'}, or start a new run",
            code="resume-inputs",
            values={"input": "training prompts", **({"commit": commit} if commit else {})},
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
    for name in sorted(began.options.keys() & now.options.keys()):
        if began.options[name] != now.options[name]:
            message = f"the file of {name} is not the one that the run began with"
            warnings.append(RunWarning(message, code="resume-inputs", values={"input": name}))
    return warnings


def check_same_base(folder: Path, model_files: ModelFiles | None, *, teacher: bool = True) -> None:
    """Raise Tdmr1Error if the base model or the teacher is not the one that the run began with.

    `teacher` is False if `model_files` lack a teacher that the run has.
    """
    if model_files is None:
        return
    header, changed = read_header(folder), None
    if header.content:
        now = content(model_files)
        names = header.content.keys() | now.keys() if teacher else now.keys()
        changed = next((name for name in sorted(names) if header.content.get(name) != now.get(name)), None)
    elif teacher and header.base not in (None, identity(model_files)):
        changed = "base"
    if changed is None:
        return
    what, setting = ("teacher", "model.teacher") if changed == "teacher" else ("model", "model.path")
    place = model_files.teacher if changed == "teacher" else model_files.folder
    raise Tdmr1Error(
        f"the {what} in {place} is not the one that the run began with: other configs or weights",
        f"name the folder of the original {what} with --set {setting}=DIR, or start a new run",
        code="resume-inputs",
        values={"input": what, "path": str(place)},
    )


def check_same_lora(folder: Path, model_files: ModelFiles | None) -> None:
    """Raise Tdmr1Error if the LoRA is not the one that the run began with, or if one was added or removed."""
    header = read_header(folder)
    if model_files is None or not (header.base or header.content):
        return
    began, lora = (header.lora or {}).get("sha256"), model_files.lora
    now = lora.sha256 if lora else None
    if began == now:
        return
    found = f"the LoRA {lora.path} is not the one that the run began with" if lora else "the LoRA of the run is missing"
    hint = "remove model.lora: the run had no LoRA"
    if began:
        hint = f"name the LoRA with sha256 {str(began)[:16]}… with --set model.lora=FILE"
    raise Tdmr1Error(
        found,
        f"{hint}, or start a new run",
        code="resume-inputs",
        values={"input": "lora", "path": str(lora.path) if lora else None, "before": began, "now": now},
    )
