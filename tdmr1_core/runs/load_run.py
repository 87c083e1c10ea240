"""Loads the trained weights of a run folder, for sampling, evaluation and export."""

from __future__ import annotations

import os
from pathlib import Path

from tdmr1_core.distill import DistillEngine
from tdmr1_core.engine import Engine
from tdmr1_core.plugins import Extensions
from tdmr1_core.preflight.resolved import ResolvedEngine, resolve_engine
from tdmr1_core.runs.checkpoints.checkpoint import latest_checkpoint, load_checkpoint
from tdmr1_core.runs.checkpoints.fingerprints import check_same_lora
from tdmr1_core.runs.checkpoints.resume import CHECKPOINTS, load_run_config


def load_trained(folder: Path, extensions: Extensions | None = None) -> Engine:
    """An engine with the latest weights of a run, at full precision.

    The prompt cache of the run is used only if it still exists and can be written. Raises Tdmr1Error for a folder that
    is not a run, a run without a checkpoint, and another LoRA than the run began with.
    """
    return load_resolved(folder, resolve_trained(folder, extensions))


def resolve_trained(folder: Path, extensions: Extensions | None = None) -> ResolvedEngine:
    """What `load_trained` builds its engine from. Raises Tdmr1Error as `load_run_config` and `resolve_engine` do."""
    config = load_run_config(folder)
    cache = config.memory.prompt_cache
    usable_cache = cache if cache and cache.is_dir() and os.access(cache, os.W_OK) else None
    full_precision = {"weights": "none", "optimizer": "none", "prompt_cache": usable_cache}
    config = config.model_copy(update={"memory": config.memory.model_copy(update=full_precision)})
    return resolve_engine(config, extensions)


def load_resolved(folder: Path, resolved: ResolvedEngine) -> Engine:
    """An engine with the latest weights of a run that `resolve_trained` has looked up."""
    kind = Engine if resolved.config.kind == "train" else DistillEngine
    engine = kind.from_resolved(resolved, run_folder=folder)
    check_same_lora(folder, engine.model_files)
    load_checkpoint(engine, latest_checkpoint(folder / CHECKPOINTS), moments=False)
    return engine
