"""What a run stands on outside its folder: prompts, rewards, base and LoRA, known by what is in them."""

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
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.loading import ModelFiles, identity
from tdmr1_core.plugins import Extensions
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.sets import evaluation_prompts
from tdmr1_core.versions import versions
from tdmr1_rewards.sources.source import find_reward, fingerprint_source

CONFIG, HEADER = "config.yaml", "tdmr1"
TRAINING, EVALUATIONS = "the training", "evaluations"


class Fingerprints(BaseModel):
    """Hashes of the prompts by what they are for, and what is known of each reward by its name in the settings."""

    model_config = ConfigDict(strict=True, frozen=True)

    prompts: dict[str, str] = {}
    rewards: dict[str, str] = {}


class Header(Fingerprints):
    """The first lines of a run's config.yaml, which are no settings."""

    versions: dict[str, str] = {}
    config_hash: str | None = None
    base: str | None = None
    lora: dict[str, Any] | None = None


def fingerprint_inputs(config: RunConfig, extensions: Extensions) -> Fingerprints:
    """What a run with these settings stands on, here and now. Raises Tdmr1Error for what is not there."""
    sets = evaluation_prompts(config, extensions, extensions.entry(config.model).domain).values()
    listed = {"": config.rewards, "evaluation.": config.evaluation.rewards, "guard.": config.guard.rewards or ()}
    registry = extensions.plugins.rewards
    return Fingerprints(
        prompts=dict(zip((TRAINING, EVALUATIONS), map(_hash, sets), strict=False)),
        rewards={
            place + reward.name: fingerprint_source(
                find_reward(registry, reward.source or reward.name, reward.python), reward.python
            )
            for place, rewards in listed.items()
            for reward in rewards
        },
    )


def _hash(prompts: Sequence[Prompt]) -> str:
    """The SHA-256 of prompts in their order, with what belongs to them."""
    told = hashlib.sha256()
    for prompt in prompts:
        told.update((json.dumps([prompt.text, prompt.metadata], sort_keys=True, default=str) + "\n").encode())
    return told.hexdigest()


def write_config(folder: Path, config: RunConfig, foundations: Fingerprints, model_files: ModelFiles | None) -> None:
    """Write a new run's settings under a header that says what it stands on."""
    header = Header(
        **foundations.model_dump(),
        versions=versions(),
        config_hash=fingerprint(config),
        base=identity(model_files) if model_files else None,
        lora=model_files.lora.record if model_files and model_files.lora else None,
    )
    text = yaml.safe_dump({HEADER: header.model_dump(exclude_none=True)}, sort_keys=False)
    replace_durable(folder / CONFIG, (text + yaml.safe_dump(dump(config), sort_keys=False)).encode())


def read_header(folder: Path) -> Header:
    """What a run began on. Raises Tdmr1Error for a header that no run has written."""
    path = folder / CONFIG
    try:
        return Header.model_validate(read_file(path).get(HEADER) or {})
    except ValidationError as error:
        place = ".".join(map(str, (HEADER, *error.errors()[0]["loc"])))
        raise Tdmr1Error(f"{place} in {path} is not what a run writes there", "put the file back as it was") from error


def differences(began: Fingerprints, now: Fingerprints) -> list[str]:
    """A sentence for everything that is no longer what a run began with, and yet may change.

    Raises Tdmr1Error for other prompts of the training: their order is the run's.
    """
    if not began.prompts:
        return [f"{CONFIG} does not say which prompts and rewards the run began with, so they are not compared"]
    other = {name for name, told in now.prompts.items() if began.prompts.get(name, told) != told}
    told_of = "the prompts of {} are not those that the run began with"
    if TRAINING in other:
        raise Tdmr1Error(told_of.format(TRAINING), "put them back, or start a new run")
    sentences = [told_of.format(name) for name in sorted(other)]
    for name, told in now.rewards.items():
        before = began.rewards.get(name, told)
        if before != told:
            sentences.append(f"reward {name} was {before} when the run began, and is {told}")
    return sentences


def check_same_base(folder: Path, model_files: ModelFiles | None) -> None:
    """Raise Tdmr1Error for another base model or teacher than a run began with."""
    if model_files is not None and read_header(folder).base not in (None, identity(model_files)):
        raise Tdmr1Error(
            f"{model_files.folder} is not the model that the run began with: its configs or weight files are others",
            "name that one in model.path of the run's config.yaml, or start a new run",
        )


def check_same_lora(folder: Path, model_files: ModelFiles | None) -> None:
    """Raise Tdmr1Error for another LoRA than a run began with, for one where it had none, and for none."""
    header = read_header(folder)
    if model_files is None or header.base is None:
        return
    began, lora = (header.lora or {}).get("sha256"), model_files.lora
    if began == (lora.sha256 if lora else None):
        return
    told = f"{lora.path} is not the LoRA" if lora else "there is no LoRA, and so not the one"
    hint = f"put that one back ({str(began)[:16]}…)" if began else "leave it out"
    raise Tdmr1Error(f"{told} that the run began with", f"{hint}, or start a new run")
