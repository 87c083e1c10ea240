"""The noise levels of a pipeline: the shift of its schedule for an image size and a number of steps.

FlowMatchEulerDiscreteScheduler of diffusers maps u = 1 - k / K to S(u) = s u / (1 + (s - 1) u). With dynamic shifting,
s = exp(mu) (or mu, if time_shift_type is linear), where the pipeline calculates mu from the image size. With
shift_terminal the levels are stretched, so that the last one before 0 has this value. Torch is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import Family, Mu

DISTILLED_MU = 1.15
"""mu of a distilled Krea 2."""
LONG_SEQUENCE = 4300
"""Image tokens above which mu of FLUX.2 does not depend on the number of steps."""
DEFAULTS = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15, "shift": 1.0}
"""Values of the scheduler's config if it does not contain them."""
NOT_SUPPORTED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas")
"""Options of the scheduler that replace its noise levels by others."""


@dataclass(frozen=True)
class NoiseSchedule:
    """s of S(u), and the level before the last step if the levels are stretched."""

    shift: float
    terminal: float | None = None


def is_static(scheduler: Mapping[str, Any]) -> bool:
    """Whether the levels of a scheduler are S(u) with the shift of its config, at every image size."""
    return not scheduler.get("use_dynamic_shifting") and not scheduler.get("shift_terminal")


def pipeline_schedule(
    family: Family, scheduler: Mapping[str, Any], tokens: int, steps: int, *, distilled: bool = False
) -> NoiseSchedule:
    """The schedule of a pipeline for images of `tokens` tokens and a number of steps, from the scheduler's config.

    `distilled` is the setting is_distilled of the pipeline. Raises Tdmr1Error for a scheduler that is not supported.
    """
    check_scheduler(family, scheduler)
    terminal = scheduler.get("shift_terminal") or None
    if not scheduler.get("use_dynamic_shifting"):
        return NoiseSchedule(float(_value(scheduler, "shift")), terminal)
    if family.mu == Mu.TOKENS_AND_STEPS:
        mu = _flux2_mu(tokens, steps)
    elif family.mu == Mu.FIXED_IF_DISTILLED and distilled:
        mu = DISTILLED_MU
    else:
        mu = _linear_mu(scheduler, tokens)
    return NoiseSchedule(mu if scheduler.get("time_shift_type") == "linear" else math.exp(mu), terminal)


def check_scheduler(family: Family, scheduler: Mapping[str, Any]) -> None:
    """Raise Tdmr1Error for a scheduler whose noise levels are not known."""
    problem = next((name for name in NOT_SUPPORTED if scheduler.get(name)), None)
    if problem is None and scheduler.get("use_dynamic_shifting") and family.mu is None:
        problem = "use_dynamic_shifting"
    if problem is not None:
        raise Tdmr1Error(
            f"the scheduler of the model has {problem}, which is not supported for {family.pipeline}",
            f"in scheduler_config.json set {problem} to false, and shift to the value of the distillation",
            code="model-unsupported",
            values={"pipeline": family.pipeline, "setting": problem},
        )


def _value(scheduler: Mapping[str, Any], name: str) -> float:
    found = scheduler.get(name)
    return DEFAULTS[name] if found is None else float(found)


def _linear_mu(scheduler: Mapping[str, Any], tokens: int) -> float:
    """mu on the line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift)."""
    base, most = _value(scheduler, "base_image_seq_len"), _value(scheduler, "max_image_seq_len")
    base_shift, max_shift = _value(scheduler, "base_shift"), _value(scheduler, "max_shift")
    slope = (max_shift - base_shift) / (most - base)
    return tokens * slope + (base_shift - slope * base)


def _flux2_mu(tokens: int, steps: int) -> float:
    """mu of FLUX.2: linear in the steps, between its values at 10 and 200 steps, which are linear in the tokens."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > LONG_SEQUENCE:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * steps + (at_200 - 200 * slope)
