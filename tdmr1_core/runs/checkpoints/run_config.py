"""The config.yaml of a run: its settings, and a header with the inputs that the run began with. Torch is not needed.

A setting that names a path inside the run folder is stored relative to the folder, as `${run}/…`, so that a copy of the
folder never uses the original.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import Tree, compared, from_portable, read_file, resolve, with_former_defaults
from tdmr1_core.durable_files import check_links
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.runs.checkpoints.changes import find_changes, refused_changes

CONFIG, HEADER = "config.yaml", "tdmr1"
TRAINING, EVALUATIONS = "the training", "evaluations"
"""The uses of prompts in a header."""


class Fingerprints(BaseModel):
    """Fingerprints of the prompts by their use, of each reward by its name, and of files in options by their setting.

    An option that names a folder has the fingerprint "folder". `commits` are those of datasets of the hub, by the use
    of their prompts; the content of the prompts decides whether a dataset changed.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    prompts: dict[str, str] = {}
    commits: dict[str, str] = {}
    rewards: dict[str, str] = {}
    options: dict[str, str] = {}


class Header(Fingerprints):
    """The section `tdmr1` of a run's config.yaml: the inputs that the run began with. It holds no settings.

    `content` has a hash of configs and weights of the base and of the teacher. Runs of earlier versions have `base`
    instead, a hash of configs and of sizes of weights. `package` is the distribution of the plugin that registers the
    model or its family.
    """

    versions: dict[str, str] = {}
    config_hash: str | None = None
    base: str | None = None
    content: dict[str, str] = {}
    lora: dict[str, Any] | None = None
    package: str | None = None


def require_run_folder(folder: Path) -> Path:
    """The config.yaml of a run folder. Raises Tdmr1Error for any other folder, and for links that lead out of it."""
    path = folder / CONFIG
    if not path.is_file():
        raise Tdmr1Error(
            f"{folder} is not a run folder: it has no {CONFIG}",
            "give the --output of an earlier run",
            code="run-folder-missing",
            values={"folder": str(folder)},
        )
    check_links(folder)
    return path


def load_run_config(folder: Path, changes: Tree | None = None) -> RunConfig:
    """The settings of a run folder, with `changes`; settings newer than the run have the value of `FORMER_DEFAULTS`.

    Raises Tdmr1Error if there are none, and for links that lead out of the folder.
    """
    tree = read_file(require_run_folder(folder))
    tree.pop(HEADER, None)
    return resolve([with_former_defaults(from_portable(tree, folder)), changes or {}])


def load_changed_config(folder: Path, changes: Tree) -> RunConfig:
    """The settings of a run folder with `changes`, for a command that only uses the trained weights.

    Raises Tdmr1Error as `load_run_config` does, and for a change that a resumed run would not allow either.
    """
    former = load_run_config(folder)
    if not changes:
        return former
    config = load_run_config(folder, changes)
    if refused := refused_changes(find_changes(compared(former), compared(config)), former, config):
        raise Tdmr1Error(
            f"a run keeps its settings, and these are not among those that may change: {', '.join(refused)}",
            "remove them; paths and the device may change, for example --set model.path=DIR",
            code="option-conflict",
            values={"target": str(folder), "settings": list(refused)},
        )
    return config


def read_header(folder: Path) -> Header:
    """The inputs that a run began with. Raises Tdmr1Error for a header that no run wrote."""
    path = folder / CONFIG
    try:
        return Header.model_validate(read_file(path).get(HEADER) or {})
    except ValidationError as error:
        first = error.errors()[0]
        entry, found = ".".join(map(str, (HEADER, *first["loc"]))), str(first["input"])
        expected = "text" if first["type"] == "string_type" else "a mapping"
        raise Tdmr1Error(
            f"{entry} in {path} has an invalid value: found {found}, expected {expected}",
            "restore the file; only the settings below its header may be edited",
            code="config-incomplete",
            values={"path": str(path), "entry": entry, "found": found, "expected": expected},
        ) from error
