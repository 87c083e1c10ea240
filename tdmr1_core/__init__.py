"""tdmr1_core: rollouts of few-step diffusion models, and the updates that reinforce them (TDM-R1, arXiv 2603.07700).

The public names are imported when they are first used, so that `import tdmr1_core` stays light.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdmr1_core.config import RunConfig
    from tdmr1_core.distill import DistillEngine
    from tdmr1_core.engine import Engine
    from tdmr1_core.errors import Tdmr1Error
    from tdmr1_core.models.registry import ModelEntry
    from tdmr1_core.plugins import discover
    from tdmr1_core.records import (
        Advantages,
        Conditioning,
        Groups,
        IterationReport,
        Prompt,
        Scores,
        Trajectory,
        UpdateStats,
    )
    from tdmr1_core.runs.run import Run

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it where it is, and it warns of what it lacks

_HOMES = {
    "Advantages": "records",
    "Conditioning": "records",
    "DistillEngine": "distill",
    "Engine": "engine",
    "Groups": "records",
    "IterationReport": "records",
    "ModelEntry": "models.registry",
    "Prompt": "records",
    "Run": "runs.run",
    "RunConfig": "config",
    "Scores": "records",
    "Tdmr1Error": "errors",
    "Trajectory": "records",
    "UpdateStats": "records",
    "discover": "plugins",
}

__all__ = [
    "Advantages",
    "Conditioning",
    "DistillEngine",
    "Engine",
    "Groups",
    "IterationReport",
    "ModelEntry",
    "Prompt",
    "Run",
    "RunConfig",
    "Scores",
    "Tdmr1Error",
    "Trajectory",
    "UpdateStats",
    "discover",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
