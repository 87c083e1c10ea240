"""Loads the trained weights of a run folder, for sampling, evaluation and export."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tdmr1_core.build.parts import Parts, load_roles
from tdmr1_core.config_loading import Tree
from tdmr1_core.distill import DistillEngine
from tdmr1_core.distributed import ALONE
from tdmr1_core.engine import Engine
from tdmr1_core.models.loading import TrainedLora, fetch_model
from tdmr1_core.models.registry import SAME
from tdmr1_core.models.roles import GENERATOR, GENERATOR_EMA
from tdmr1_core.plugins import Extensions, Hooks, discover
from tdmr1_core.preflight.resolved import ResolvedEngine, example_prompts
from tdmr1_core.preflight.rewards import RewardFinder
from tdmr1_core.runs.checkpoints.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    read_latest_checkpoint,
    weight_names,
)
from tdmr1_core.runs.checkpoints.fingerprints import check_same_base, check_same_lora
from tdmr1_core.runs.checkpoints.resume import CHECKPOINTS
from tdmr1_core.runs.checkpoints.run_config import load_changed_config, read_header


def load_trained(folder: Path, extensions: Extensions | None = None) -> Engine:
    """An engine with the latest weights of a run, at full precision and without its rewards.

    The prompt cache of the run is used only if it still exists and can be written. Raises Tdmr1Error for a folder that
    is not a run, a run without a checkpoint, and another base model or LoRA than the run began with.
    """
    return load_resolved(folder, resolve_trained(folder, extensions))


def resolve_trained(folder: Path, extensions: Extensions | None = None, changes: Tree | None = None) -> ResolvedEngine:
    """What `load_trained` builds its engine from, with `changes` of the settings.

    Training prompts that cannot be read are replaced by others; rewards are not looked up. Raises Tdmr1Error as
    `load_changed_config` does, and for a model that cannot be found.
    """
    config = load_changed_config(folder, changes or {})
    cache = config.memory.prompt_cache
    usable_cache = cache if cache and cache.is_dir() and os.access(cache, os.W_OK) else None
    usual = {"weights": "none", "optimizer": "none", "shard": False, "attention": "auto", "prompt_cache": usable_cache}
    config = config.model_copy(update={"memory": config.memory.model_copy(update=usual)})
    extensions = extensions or discover()
    entry, registry = extensions.entry(config.model), extensions.plugins.rewards
    prompts = example_prompts(config, entry, registry)
    return ResolvedEngine(config, extensions, RewardFinder(registry), entry, prompts, ())


def load_resolved(folder: Path, resolved: ResolvedEngine, *, start: bool = True, teacher: bool = True) -> Engine:
    """An engine with the latest weights of a run that `resolve_trained` has looked up.

    Without `start`, the few-step LoRA is not read, and `Engine.start` is a new adapter. Without `teacher`, a second
    backbone is not loaded, and only the weights of the generator are.
    """
    config, entry = resolved.config, resolved.entry
    checkpoints = folder / CHECKPOINTS
    latest_checkpoint(checkpoints)  # an error is raised before the model is loaded
    trained = None if start else _trained_lora(folder)
    wanted = entry if teacher else replace(entry, teacher=SAME)
    model_files = fetch_model(wanted, config.model, training=config.kind == "train", trained=trained)
    check_same_base(folder, model_files, teacher=wanted.teacher == entry.teacher)
    if trained is None:
        check_same_lora(folder, model_files)
    roles = load_roles(config, model_files, ALONE.device(config.model.device))
    hooks = Hooks(resolved.extensions.plugins.manager)
    parts = Parts(entry, roles, list(resolved.prompts.prompts), None, hooks, model_files)
    engine = Engine(config, parts) if config.kind == "train" else DistillEngine(config, parts)
    loaded = None if wanted == entry else (GENERATOR, GENERATOR_EMA)
    checkpoint, files = read_latest_checkpoint(checkpoints)
    load_checkpoint(engine, checkpoint, moments=False, roles=loaded, files=files)
    return engine


def _trained_lora(folder: Path) -> TrainedLora | None:
    """The generator of the latest checkpoint, if the run began with a few-step LoRA of recorded rank and alpha."""
    record = read_header(folder).lora or {}
    known = isinstance(record.get("rank"), int) and isinstance(record.get("alpha"), int | float)
    if not (known and {"file", "sha256"} <= record.keys()):
        return None
    checkpoint, files = read_latest_checkpoint(folder / CHECKPOINTS)
    return TrainedLora(weight_names(checkpoint, files, GENERATOR), record)
