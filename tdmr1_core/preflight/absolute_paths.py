"""Settings that mean the same files and folders wherever a run is continued from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdmr1_core.config import ModelConfig, PromptConfig, RewardConfig, RunConfig
from tdmr1_core.models.entry import SAME
from tdmr1_core.plugins import Extensions
from tdmr1_core.prompts.sets import PROMPT_SETS
from tdmr1_rewards.sources.source import parse


def make_absolute(config: RunConfig, extensions: Extensions) -> RunConfig:
    """The same settings with absolute paths; names of models, prompt sets and rewards and ids of the hub stay.

    Raises Tdmr1Error for an unknown model, and for a reward's source of no known form.
    """
    domain = extensions.entry(config.model).domain
    lists = {
        "evaluation": tuple(map(_reward, config.evaluation.rewards)),
        "guard": None if config.guard.rewards is None else tuple(map(_reward, config.guard.rewards)),
    }
    cache = config.memory.prompt_cache
    return config.model_copy(
        update={
            "model": _model(config.model, {entry.name for entry in extensions.models.entries()}),
            "rewards": tuple(map(_reward, config.rewards)),
            "prompts": _prompts(config.prompts, set(PROMPT_SETS.get(domain, ()))),
            "memory": config.memory.model_copy(update={"prompt_cache": cache.absolute() if cache else None}),
            **{name: getattr(config, name).model_copy(update={"rewards": rewards}) for name, rewards in lists.items()},
        }
    )


def _model(model: ModelConfig, registered: set[str]) -> ModelConfig:
    """A model whose own name and whose teacher may be directories, and whose base and LoRA may be on the hub."""
    names = {"name": model.name, "teacher": model.teacher}
    found: dict[str, Any] = {key: _there(name, registered | {SAME}) for key, name in names.items() if name is not None}
    found |= {key: path.absolute() for key in ("path", "lora") if (path := getattr(model, key)) and path.exists()}
    return model.model_copy(update=found)


def _prompts(prompts: PromptConfig, known: set[str]) -> PromptConfig:
    sources = {"train": prompts.train, "evaluate": prompts.evaluate}
    return prompts.model_copy(update={key: _there(name, known) for key, name in sources.items() if name is not None})


def _reward(reward: RewardConfig) -> RewardConfig:
    """A reward with its file and the interpreter that it runs in."""
    source = str(parse(reward.source).absolute()) if reward.source else reward.source
    return reward.model_copy(
        update={"source": source, "python": reward.python.absolute() if reward.python else reward.python}
    )


def _there(name: str, known: set[str]) -> str:
    """A path that is there as an absolute one; a known name, and what may be one, as it is."""
    path = Path(name)
    return str(path.absolute()) if name not in known and path.exists() else name
