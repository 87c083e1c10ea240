"""Optional modules and weight files of the built-in rewards, with errors that name the fix."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error

CONFIGS = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "open_clip_config.json")
"""Files of which a downloaded repository has at least one."""


def import_optional(module: str, install: str) -> Any:
    """Import `module`; `install` is the pip requirement that provides it, such as "tdmr1[ocr]".

    Raises Tdmr1Error if the module is not installed, or if its import fails.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing_package(error.name or module, install) from error
    except Exception as error:
        raise Tdmr1Error(
            f"{module} is installed but cannot be imported: {first_line(error)}",
            "it may conflict with another installed package; "
            "run the reward in a separate Python environment (`python:`)",
            code="reward-environment",
            values={"module": module, "error": first_line(error)},
        ) from error


def missing_package(module: str, install: str) -> Tdmr1Error:
    """The error for a Python package that is not installed; `install` is the pip requirement that provides it."""
    return Tdmr1Error(
        f"the Python package {module} is not installed",
        f"pip install '{install}'",
        code="dependency-missing",
        values={"module": module, "install": install},
    )


def find_file(reference: str) -> Path:
    """The file of a reference: a local path, or ORG/REPO/FILE on the Hugging Face hub, downloaded once.

    Raises Tdmr1Error if there is no such path and the hub cannot provide the file.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    parts = reference.split("/")
    if path.is_absolute() or len(parts) < 3 or not all(parts):
        raise Tdmr1Error(
            f"there is no file {reference!r}",
            "give a file, or a file on the hub as ORG/REPO/FILE",
            code="file-missing",
            values={"path": reference},
        )
    hub = import_optional("huggingface_hub", "huggingface_hub")
    try:
        return Path(hub.hf_hub_download(*hub_reference(reference)))
    except Exception as error:
        hint = "download it on a machine that has a connection, and give the path of the file"
        raise download_error(reference, error, hint) from error


def hub_reference(reference: str) -> tuple[str, str | None]:
    """The repository and the file of ORG/REPO/FILE; the file is None for a repository, ORG/REPO or REPO."""
    parts = reference.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:]) or None


def is_cached(reference: str) -> bool:
    """Whether the cache of the hub has a file, or a config of a repository. Nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    repo, file = hub_reference(reference)
    files = (file,) if file is not None else CONFIGS
    return any(isinstance(try_to_load_from_cache(repo, name), str) for name in files)


def read_state_dict(path: Path, what: str) -> dict[str, Any]:
    """The state dict in a file, safetensors by its suffix or else torch.save; empty if the file holds something else.

    `what` names the file in messages, such as "the aesthetic head". Nothing but tensors is unpickled. Raises
    Tdmr1Error if the file cannot be read.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly every exception
        raise Tdmr1Error(
            f"{what} {path} cannot be read: {first_line(error)}",
            "use a safetensors file, or a state dict that contains only tensors",
            code="reward-weights",
            values={"path": str(path), "error": first_line(error)},
        ) from error
    return dict(state) if isinstance(state, dict) else {}


def download_error(name: str, error: BaseException, offline_hint: str) -> Tdmr1Error:
    """The error for a failed download of `name` from the hub; `offline_hint` is the fix without a connection.

    The code is "hub-denied" if the repository is gated, private or missing, else "hub-unavailable".
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    causes = list(_causes(error))
    # GatedRepoError is a subclass of RepositoryNotFoundError.
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return Tdmr1Error(
            f"{name} cannot be downloaded: its hub repository is gated",
            "accept its terms on its web page, then log in with `hf auth login`",
            code="hub-denied",
            values={"name": name},
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return Tdmr1Error(
            f"{name} cannot be downloaded: its hub repository does not exist or is private",
            "check the name; if the repository is private, log in with `hf auth login`",
            code="hub-denied",
            values={"name": name},
        )
    return Tdmr1Error(
        f"{name} is not in the local cache and cannot be downloaded from the hub: {first_line(error)}",
        offline_hint,
        code="hub-unavailable",
        values={"name": name, "error": first_line(error)},
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
