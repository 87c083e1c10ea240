"""Reinforcement learning for few-step diffusion models (TDM-R1, arXiv 2603.07700).

Each public name is imported when it is first used, so that `import tdmr1_core` is fast and does not import torch.
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
    from tdmr1_core.preflight.resolved import ResolvedRun, resolve_run
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
    from tdmr1_core.training.train import train
    from tdmr1_core.training.trained_run import TrainedRun

# PEFT imports bitsandbytes if it is installed, and bitsandbytes warns on machines without a supported GPU.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_MODULES = {
    "Advantages": "records",
    "Conditioning": "records",
    "DistillEngine": "distill",
    "Engine": "engine",
    "Groups": "records",
    "IterationReport": "records",
    "ModelEntry": "models.registry",
    "Prompt": "records",
    "ResolvedRun": "preflight.resolved",
    "Run": "runs.run",
    "RunConfig": "config",
    "Scores": "records",
    "Tdmr1Error": "errors",
    "TrainedRun": "training.trained_run",
    "Trajectory": "records",
    "UpdateStats": "records",
    "discover": "plugins",
    "resolve_run": "preflight.resolved",
    "train": "training.train",
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
    "ResolvedRun",
    "Run",
    "RunConfig",
    "Scores",
    "Tdmr1Error",
    "TrainedRun",
    "Trajectory",
    "UpdateStats",
    "discover",
    "resolve_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
