"""Modules and files that a reward needs and that may not be there, with the sentence that says what to do."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error


def import_optional(module: str, install: str) -> Any:
    """The module of this name; `install` is what brings it, such as "tdmr1[ocr]".

    Raises Tdmr1Error where it isn't installed, or is and can't be imported.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise Tdmr1Error(f"{missing} is not installed", f"pip install '{install}'") from error
    except Exception as error:
        raise Tdmr1Error(
            f"{module} is installed but can't be imported: {first_line(error)}",
            "it does not fit what else is installed: run the reward in an environment of its own (`python:`)",
        ) from error


def find_file(reference: str) -> Path:
    """The file that `reference` names: a path, or ORG/REPO/FILE on the Hugging Face hub, which is fetched once.

    Raises Tdmr1Error where there is no such path and the hub can't give it.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    parts = reference.split("/")
    if path.is_absolute() or len(parts) < 3 or not all(parts):
        raise Tdmr1Error(f"there is no file {reference!r}", "name a file, or one on the hub as ORG/REPO/FILE")
    hub = import_optional("huggingface_hub", "huggingface_hub")
    try:
        return Path(hub.hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except Exception as error:
        raise Tdmr1Error(
            f"{reference} can't be had from the hub: {first_line(error)}",
            "download it where there is a connection, and name the file",
        ) from error


def first_line(error: BaseException) -> str:
    """An exception in one line: what it says first, or else its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
