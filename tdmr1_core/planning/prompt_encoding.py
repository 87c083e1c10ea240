"""Describes where the text encoders of a run are, and how many of its prompts are encoded together."""

from __future__ import annotations

from tdmr1_core.planning.estimate import Plan, encoder_placement, shards
from tdmr1_core.preflight.resolved import ResolvedRun


def describe_encoding(planned: Plan, resolved: ResolvedRun) -> str:
    """One sentence about `memory.text_encoders`.

    Prompts are counted as if each were the longest, and as if one process encoded those of all processes.
    """
    if shards(resolved.config, planned.processes):
        return "they stay on the devices, divided among the processes"
    placement = encoder_placement(resolved.config)
    if placement == "device":
        return "they stay on the device"
    budget = resolved.config.memory.prompt_cache_gb
    held = int(budget * 1e9 / planned.prompt_bytes)
    if placement == "cpu" or held == 0:
        return "they stay on the CPU; for new prompts they are moved to the device"
    prompts = count_prompts(resolved)
    needed = prompts * planned.prompt_bytes
    amount = f"all {prompts} prompts of the run ({needed / 1e9:.2g} GB)"
    if prompts <= held:
        return f"{amount} are encoded at the start (memory.prompt_cache_gb={budget:g}); then the encoders are released"
    return (
        f"{amount} exceed memory.prompt_cache_gb={budget:g}; {held} at a time are encoded ahead, "
        "and the encoders stay on the CPU between these blocks"
    )


def count_prompts(resolved: ResolvedRun) -> int:
    """The number of different prompts that a run samples, at most; with teaching prompts, all prompts that it may."""
    config = resolved.config
    training, evaluated = (
        {prompt.text for prompt in prompts} for prompts in (resolved.prompts.prompts, resolved.evaluated_prompts)
    )
    if config.batch.prompts == "teaching":
        return len(training | evaluated)
    drawn = config.iterations * config.batch.groups
    return min(len(training | evaluated), drawn + len(evaluated))
