"""The files and folders that the options of rewards name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.models.pipeline_files import file_hash

LOCAL_DIR = "local-dir:"
"""The prefix of a folder in the options of rewards that use open_clip."""
FOLDER = "folder"
"""The fingerprint of an option that names a folder: its content, such as answers of people, may change."""


def listed_rewards(config: RunConfig) -> list[tuple[str, RewardConfig]]:
    """Every reward that the settings name, with the dotted name of its place."""
    lists = {
        "rewards": config.rewards,
        "evaluation.rewards": config.evaluation.rewards,
        "guard.rewards": config.guard.rewards or (),
    }
    return [(f"{name}.{number}", reward) for name, rewards in lists.items() for number, reward in enumerate(rewards)]


def leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every value in nested dicts and sequences, with its dotted name."""
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list | tuple):
        items = list(enumerate(tree))
    else:
        yield prefix, tree
        return
    for key, value in items:
        yield from leaves(value, f"{prefix}.{key}")


def path_in(value: Any) -> Path | None:
    """The path that the value of an option may be; None for another value."""
    return Path(value.removeprefix(LOCAL_DIR)) if isinstance(value, str) and "/" in value else None


def option_fingerprints(config: RunConfig) -> dict[str, str]:
    """A hash of each existing file that an option of a reward names, and "folder" for a folder, by dotted setting."""
    found = {}
    for place, reward in listed_rewards(config):
        for name, value in leaves(reward.options, f"{place}.options"):
            path = path_in(value)
            if path is not None and os.path.exists(path):
                found[name] = file_hash(path) if path.is_file() else FOLDER
    return found
