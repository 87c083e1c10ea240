"""`tdmr1 rewards new`: writes a reward package with a working example."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

import typer

from tdmr1_cli.commands.plugins import find_plugins
from tdmr1_cli.output import data, message
from tdmr1_core.durable_files import write_results
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

SUFFIX = ".template"


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the reward, such as my-reward.")],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Folder to write to; default ./NAME.")
    ] = None,
) -> None:
    """Write a package with a working reward: a module, examples, a test, and the entry point for tdmr1."""
    names = _names(name)
    folder = output or Path(names["distribution"])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Tdmr1Error(
            f"{folder} already exists",
            "choose another folder with --output",
            code="file-exists",
            values={"path": str(folder)},
        )
    files = {folder / path: text.encode() for path, text in _files(names).items()}
    write_results(files)
    data(*map(str, files))
    message(
        f"next: pip install -e '{folder}[dev]'",
        f"      pytest {folder}",
        f"      tdmr1 rewards check {names['reward']}",
        f"      tdmr1 train --reward {names['reward']}",
    )


def _names(name: str) -> dict[str, str]:
    """The names of reward, package, distribution and class. Raises Tdmr1Error if a name is invalid or in use."""
    reward = re.sub(r"[-_. ]+", "_", name.strip().lower())
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", reward) or keyword.iskeyword(reward):
        raise Tdmr1Error(
            f"{name!r} is not a valid name for a reward",
            "use letters, digits and hyphens, as in my-reward",
            code="argument-invalid",
            values={"argument": "NAME", "value": name},
        )
    if reward in find_plugins().rewards.names():
        raise Tdmr1Error(
            f"a reward named {reward!r} already exists",
            "choose another name",
            code="reward-name-conflict",
            values={"name": reward, "kind": "reward"},
        )
    if importlib.util.find_spec(reward) is not None:
        raise Tdmr1Error(
            f"a Python module named {reward!r} already exists",
            "choose another name",
            code="reward-name-conflict",
            values={"name": reward, "kind": "module"},
        )
    class_name = "".join(word.capitalize() for word in reward.split("_"))
    return {"reward": reward, "package": reward, "distribution": reward.replace("_", "-"), "class_name": class_name}


def _files(names: dict[str, str]) -> dict[Path, str]:
    """The files of the package: relative path and text."""
    from importlib.resources import files

    found: dict[Path, str] = {}

    def walk(folder: Traversable, below: Path) -> None:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if entry.is_dir():
                walk(entry, below / (names["package"] if entry.name == "package" else entry.name))
            elif entry.name.endswith(SUFFIX):
                text = Template(entry.read_text(encoding="utf-8")).substitute(names)
                found[below / entry.name.removesuffix(SUFFIX)] = text

    walk(files("tdmr1_cli.commands.rewards") / "template", Path())
    return found
