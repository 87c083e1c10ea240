"""Prompts that a Python program gives as a list of strings or dicts, for a file in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.prompts.entries import KEY
from tdmr1_core.prompts.files import prompts_of
from tdmr1_core.prompts.json_files import json_entries
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.sets import PromptSet


@dataclass(frozen=True)
class ListedPrompts:
    """A prompt set with the name of its file, and the content of this file, which does not exist yet."""

    prompts: PromptSet
    content: bytes


def read_prompts(prompts: Any, argument: str, file: Path) -> ListedPrompts | None:
    """The prompts of a list of strings, of dicts with the key `prompt` and metadata, or of Prompts, or of a DataFrame.

    None for the name of a set or file. `argument` names the list in messages. Reading `file` gives the same prompts.
    Raises Tdmr1Error if there are none, for entries that are not prompts, and for metadata that JSON does not have.
    """
    if prompts is None or isinstance(prompts, str | Path):
        return None
    if hasattr(prompts, "to_dicts") and hasattr(prompts, "columns"):  # polars
        prompts = prompts.to_dicts()
    elif hasattr(prompts, "to_dict") and hasattr(prompts, "columns"):  # pandas
        prompts = prompts.to_dict("records")
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise Tdmr1Error(
            f"{argument} is a value of type {type(prompts).__name__}, not prompts",
            "give the name of a prompt set or file, or a list of strings or dicts with the key 'prompt'",
            code="argument-invalid",
            values={"argument": argument, "type": type(prompts).__name__},
        )
    items = [_item(each) for each in prompts]
    if not items:
        raise Tdmr1Error(f"{argument} is empty", "give at least one prompt", code="prompts-empty")
    try:
        text = json.dumps(items, ensure_ascii=False, indent=1, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise Tdmr1Error(
            f"the metadata of {argument} cannot be written as JSON: {error}",
            "use strings, numbers, lists and dicts",
            code="prompt-invalid",
            values={"argument": argument, "reason": str(error)},
        ) from error
    read = prompts_of(list(json_entries(text, Path(argument))), Path(argument))
    return ListedPrompts(PromptSet(str(file), tuple(read)), text.encode())


def _item(entry: Any) -> Any:
    return {**entry.metadata, KEY: entry.text} if isinstance(entry, Prompt) else entry


def _plain(value: Any) -> Any:
    """A number or array of numpy, a tensor or a path as JSON data. Raises TypeError for another value."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"it has a value of type {type(value).__name__}")
