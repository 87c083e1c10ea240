"""What a training needs from this machine, checked for `--dry-run` without loading weights or building rewards.

A training raises the same errors where it uses these things.
"""

from __future__ import annotations

import shutil

from tdmr1_core.distributed import ALONE
from tdmr1_core.durable_files import check_writable
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.loading import fetch_model
from tdmr1_core.models.pipeline_files import absent_parts, fetch, is_on_hub, parts_of
from tdmr1_core.models.quantization import bitsandbytes
from tdmr1_core.models.registry import SAME
from tdmr1_core.preflight.resolved import ResolvedRun
from tdmr1_core.preflight.rewards import ResolvedReward
from tdmr1_rewards.builtin.optional import missing_package
from tdmr1_rewards.calling.process import no_interpreter
from tdmr1_rewards.registry import availability


def check_machine(resolved: ResolvedRun) -> None:
    """Raise Tdmr1Error for a device, package, interpreter, folder or local model file that is missing or damaged.

    So it does for an attention kernel that the device does not have. Nothing is downloaded: of a model on the hub, no
    file is checked.
    """
    from tdmr1_core.models.attention import check_attention
    from tdmr1_core.models.backbone import PRECISIONS

    config, memory = resolved.config, resolved.config.memory
    device, family = ALONE.device(config.model.device), FAMILIES[resolved.entry.family]
    if memory.attention != "auto":
        check_attention(memory.attention, device, PRECISIONS[config.model.precision], family)
    if {memory.weights, memory.optimizer} != {"none"}:
        bitsandbytes()
    if memory.prompt_cache is not None:
        check_writable(memory.prompt_cache, "set memory.prompt_cache to a writable folder")
    for reward in (*resolved.rewards, *resolved.evaluation_rewards):
        _check_reward(reward)
    _check_model(resolved)


def _check_reward(reward: ResolvedReward) -> None:
    """Raise Tdmr1Error if the interpreter of a reward, or a package that it needs here, is missing."""
    python, spec = reward.config.python, reward.registered.spec
    if python is not None:
        if shutil.which(str(python)) is None:
            raise no_interpreter(str(reward.registered), python, "it is missing or not executable")
        return
    found = availability(spec)
    if not found.usable:
        module = found.missing[0].partition(" or ")[0]
        raise missing_package(module, spec.install or module)


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
