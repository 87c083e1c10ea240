"""Makes the paths in settings absolute, so that a run can be resumed from any working directory."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path
from typing import Any

from tdmr1_core.config import ModelConfig, PromptConfig, RewardConfig, RunConfig
from tdmr1_core.models.registry import SAME, ModelEntry
from tdmr1_core.plugins import Extensions
from tdmr1_core.prompts.sets import PROMPT_SETS
from tdmr1_rewards.sources.source import parse_source


def make_absolute(config: RunConfig, entry: ModelEntry, extensions: Extensions) -> RunConfig:
    """The same settings with absolute paths. Names of models, prompt sets and rewards, and hub ids, do not change.

    Raises Tdmr1Error if the source of a reward is not of a known form.
    """
    lists = {
        "evaluation": tuple(map(_reward, config.evaluation.rewards)),
        "guard": None if config.guard.rewards is None else tuple(map(_reward, config.guard.rewards)),
    }
    cache = config.memory.prompt_cache
    return config.model_copy(
        update={
            "model": _model(config.model, extensions.models.names),
            "rewards": tuple(map(_reward, config.rewards)),
            "prompts": _prompts(config.prompts, set(PROMPT_SETS.get(entry.domain, ()))),
            "memory": config.memory.model_copy(update={"prompt_cache": cache.absolute() if cache else None}),
            **{name: getattr(config, name).model_copy(update={"rewards": rewards}) for name, rewards in lists.items()},
        }
    )


def _model(model: ModelConfig, registered: frozenset[str]) -> ModelConfig:
    """The name and the teacher may be directories; the base and the LoRA may be on the hub."""
    names = {"name": model.name, "teacher": model.teacher}
    found: dict[str, Any] = {
        key: _absolute_if_exists(name, registered | {SAME}) for key, name in names.items() if name is not None
    }
    found |= {key: path.absolute() for key in ("path", "lora") if (path := getattr(model, key)) and path.exists()}
    return model.model_copy(update=found)


def _prompts(prompts: PromptConfig, known: set[str]) -> PromptConfig:
    sources = {"train": prompts.train, "evaluate": prompts.evaluate}
    return prompts.model_copy(
        update={key: _absolute_if_exists(name, known) for key, name in sources.items() if name is not None}
    )


def _reward(reward: RewardConfig) -> RewardConfig:
    """The settings of a reward with absolute paths of its file and its interpreter."""
    source = str(parse_source(reward.source).absolute()) if reward.source else reward.source
    return reward.model_copy(
        update={"source": source, "python": reward.python.absolute() if reward.python else reward.python}
    )


def _absolute_if_exists(name: str, known: Set[str]) -> str:
    """The absolute path of an existing file or folder; a known name, or anything else, unchanged."""
    return str(Path(name).absolute()) if name and name not in known and os.path.exists(name) else name
