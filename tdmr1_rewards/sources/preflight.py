"""Asks a reward, before anything is loaded, which prompts it cannot score (`preflight` of its RewardSpec)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmr1_rewards.api import RunPreview
from tdmr1_rewards.calling.reference import reference_of, resolve, validated_options
from tdmr1_rewards.errors import Tdmr1Error, describe_error
from tdmr1_rewards.registry import RegisteredReward


def preflight(
    registered: RegisteredReward,
    options: Mapping[str, Any],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    run_folder: Path | None = None,
) -> list[str | None]:
    """For each of N prompts None, or why the reward cannot score its images. All None if the spec has no `preflight`.

    Raises Tdmr1Error for wrong options, and if the function of the reward raises, cannot be imported, or does not
    return N entries that are None or strings.
    """
    spec = registered.spec
    if spec.preflight is None:
        return [None] * len(prompts)
    given = None if spec.options is None else validated_options(reference_of(spec, options), registered)
    function = resolve(spec.preflight, registered)
    try:
        answer = function(RunPreview(prompts=prompts, metadata=metadata, options=given, run_folder=run_folder))
    except Tdmr1Error:
        raise
    except Exception as error:
        described = describe_error(error)
        raise Tdmr1Error(
            f"{registered}: {spec.preflight} raised {described}",
            "correct the function, or remove `preflight` from the RewardSpec",
            code="reward-failed",
            values={"reward": str(registered), "error": described},
        ) from error
    reasons = list(answer) if isinstance(answer, list | tuple) else []
    if len(reasons) != len(prompts) or not all(reason is None or isinstance(reason, str) for reason in reasons):
        found = f"a list of {len(reasons)}" if isinstance(answer, list | tuple) else f"a {type(answer).__name__}"
        raise Tdmr1Error(
            f"{registered}: {spec.preflight} returned {found}, but must return None or a string for each of "
            f"{len(prompts)} prompts",
            "correct the function",
            code="reward-spec",
            values={"reward": str(registered), "field": "preflight", "found": found, "prompts": len(prompts)},
        )
    return reasons
