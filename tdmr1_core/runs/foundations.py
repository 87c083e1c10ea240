"""What a run stands on outside its folder: prompts, rewards, base and LoRA, known by what is in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tdmr1_core.config import RunConfig
from tdmr1_core.configure import dump, fingerprint, read_file
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.acquire import Acquired, identity
from tdmr1_core.plugins import Extensions
from tdmr1_core.prompt_sets.prompt import Prompt
from tdmr1_core.runs.storage import replace_lasting
from tdmr1_core.stages.prompts import evaluation_prompts, training_prompts
from tdmr1_core.versions import versions
from tdmr1_rewards.sources import contents

CONFIG, HEADER = "config.yaml", "tdmr1"


class Foundations(BaseModel):
    """Hashes of the prompts by set, and what is known of each reward by its source."""

    model_config = ConfigDict(strict=True, frozen=True)

    prompts: dict[str, str] = {}
    rewards: dict[str, str] = {}


class Header(Foundations):
    """The first lines of a run's config.yaml, which are no settings."""

    versions: dict[str, str] = {}
    config_hash: str | None = None
    base: str | None = None
    lora: dict[str, Any] | None = None


def lay(config: RunConfig, extensions: Extensions) -> Foundations:
    """What a run with these settings stands on, here and now. Raises Tdmr1Error for what is not there."""
    sets = evaluation_prompts(config, extensions, extensions.entry(config.model).domain)
    listed = chain(config.rewards, config.evaluation.rewards, config.guard.rewards or ())
    registry = extensions.plugins.rewards
    rewards = {reward.source or reward.name: reward.python for reward in listed}
    return Foundations(
        prompts={name: _hash(prompts) for name, prompts in sets.items()},
        rewards={source: contents(registry, source, python) for source, python in rewards.items()},
    )


def _hash(prompts: Sequence[Prompt]) -> str:
    """The SHA-256 of prompts in their order, with what belongs to them."""
    told = hashlib.sha256()
    for prompt in prompts:
        told.update((json.dumps([prompt.text, prompt.metadata], sort_keys=True, default=str) + "\n").encode())
    return told.hexdigest()


def write_config(folder: Path, config: RunConfig, foundations: Foundations, acquired: Acquired | None) -> None:
    """Write a new run's settings under a header that says what it stands on."""
    header = Header(
        **foundations.model_dump(),
        versions=versions(),
        config_hash=fingerprint(config),
        base=identity(acquired) if acquired else None,
        lora=acquired.lora.record if acquired and acquired.lora else None,
    )
    text = yaml.safe_dump({HEADER: header.model_dump(exclude_none=True)}, sort_keys=False)
    replace_lasting(folder / CONFIG, (text + yaml.safe_dump(dump(config), sort_keys=False)).encode())


def read_header(folder: Path) -> Header:
    """What a run began on. Raises Tdmr1Error for a header that no run has written."""
    path = folder / CONFIG
    try:
        return Header.model_validate(read_file(path).get(HEADER) or {})
    except ValidationError as error:
        place = ".".join(map(str, (HEADER, *error.errors()[0]["loc"])))
        raise Tdmr1Error(f"{place} in {path} is not what a run writes there", "put the file back as it was") from error


def differences(config: RunConfig, extensions: Extensions, began: Foundations, now: Foundations) -> list[str]:
    """A sentence for everything that is no longer what a run began with, and yet may change.

    Raises Tdmr1Error for other prompts of the training: their order is the run's.
    """
    trained = training_prompts(config, extensions)
    other = {name for name, told in now.prompts.items() if began.prompts.get(name, told) != told}
    if trained in other:
        raise Tdmr1Error(
            f"the prompts of {trained} are not those that the run began with", "put them back, or start a new run"
        )
    sentences = [f"the prompts of {name} are not those that the run began with" for name in sorted(other)]
    for source, told in now.rewards.items():
        before = began.rewards.get(source, told)
        if before != told:
            sentences.append(f"reward {source} was {before} when the run began, and is {told}")
    return sentences


def check_same_weights(folder: Path, acquired: Acquired | None) -> None:
    """Raise Tdmr1Error for another base model or another LoRA than those that a run began with."""
    if acquired is None:
        return
    header = read_header(folder)
    if header.base not in (None, identity(acquired)):
        raise Tdmr1Error(
            f"{acquired.folder} is not the model that the run began with: its configs or weight files are others",
            "name that one in model.path of the run's config.yaml, or start a new run",
        )
    began, lora = (header.lora or {}).get("sha256"), acquired.lora
    if began and lora and began != lora.sha256:
        raise Tdmr1Error(
            f"{lora.path} is not the LoRA that the run began with: its SHA-256 is another one",
            f"put that one back ({str(began)[:16]}…), or start a new run",
        )
