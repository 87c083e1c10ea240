"""What a training needs from this machine, checked for `--dry-run` and `doctor`. Loads no weights, builds no rewards.

A training raises the same errors where it uses these things.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

from tdmr1_core.distributed import ALONE
from tdmr1_core.durable_files import check_writable
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.loading import fetch_model
from tdmr1_core.models.pipeline_files import absent_parts, fetch, is_on_hub, parts_of
from tdmr1_core.models.quantization import bitsandbytes
from tdmr1_core.models.registry import SAME
from tdmr1_core.preflight.resolved import ResolvedRun
from tdmr1_core.preflight.rewards import ResolvedReward
from tdmr1_rewards.calling.process import no_interpreter
from tdmr1_rewards.sources.source import lacking

LATER = "hub-unavailable"
"""The code of the errors for weights of rewards that are not in the cache: a training downloads them."""


def check_machine(resolved: ResolvedRun) -> None:
    """Raise the first of `machine_errors` that is not corrected by a download."""
    for error in machine_errors(resolved):
        if error.code != LATER:
            raise error


def machine_errors(resolved: ResolvedRun) -> Iterator[Tdmr1Error]:
    """An error for each device, package, interpreter, folder or local model file that is missing or damaged.

    So there is for an attention kernel that the device does not have, and for weights of rewards that are not in the
    cache. Nothing is downloaded: of a model on the hub, no file is checked.
    """
    yield from _caught(_check_settings, resolved)
    side = max(
        resolved.config.model.height or resolved.entry.height, resolved.config.model.width or resolved.entry.width
    )
    for reward in (*resolved.rewards, *resolved.evaluation_rewards):
        yield from _reward_errors(reward, side)
    yield from _caught(_check_model, resolved)


def _caught(check: Callable[[ResolvedRun], None], resolved: ResolvedRun) -> Iterator[Tdmr1Error]:
    try:
        check(resolved)
    except Tdmr1Error as error:
        yield error


def _check_settings(resolved: ResolvedRun) -> None:
    """Raise Tdmr1Error if the device, attention kernel, bitsandbytes, compiler or prompt cache cannot be used."""
    from tdmr1_core.models.attention import check_attention
    from tdmr1_core.models.backbone import PRECISIONS
    from tdmr1_core.models.memory import check_compiler

    config, memory = resolved.config, resolved.config.memory
    device, family = ALONE.device(config.model.device), FAMILIES[resolved.entry.family]
    if memory.attention != "auto":
        check_attention(memory.attention, device, PRECISIONS[config.model.precision], family)
    if {memory.weights, memory.optimizer} != {"none"}:
        bitsandbytes()
    if memory.compile:
        check_compiler(device)
    if memory.prompt_cache is not None:
        check_writable(memory.prompt_cache, "set memory.prompt_cache to a writable folder")


def _reward_errors(reward: ResolvedReward, side: int) -> list[Tdmr1Error]:
    """What is missing for a reward: its interpreter, or packages, weights and environment variables here."""
    python = reward.config.python
    if python is None:
        return lacking(reward.registered, reward.options, side)
    if shutil.which(str(python)) is None:
        return [no_interpreter(str(reward.registered), python, "it is missing or not executable")]
    return []


def _check_model(resolved: ResolvedRun) -> None:
    """Raise Tdmr1Error if local directories of the model, or its local few-step LoRA, are incomplete or do not fit."""
    entry = resolved.entry
    training = resolved.config.kind == "train"
    sources = [entry.base, *([entry.teacher] if entry.teacher != SAME else [])]
    if training and entry.lora is not None:
        sources.append(entry.lora)
    if not any(map(is_on_hub, sources)):
        fetch_model(entry, resolved.config.model, training=training)
    elif not is_on_hub(entry.base):
        absent = absent_parts(entry.base, FAMILIES[entry.family], with_t5=entry.with_t5)
        fetch(entry.base, parts_of(entry.base, absent))
