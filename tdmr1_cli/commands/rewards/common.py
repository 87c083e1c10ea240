"""Shared by the commands of `tdmr1 rewards`: arguments, and finding and building a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.commands.plugins import find_plugins
from tdmr1_cli.output import message
from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.registry import availability
from tdmr1_rewards.texts.redaction import remember_tree

if TYPE_CHECKING:
    from tdmr1_rewards.api import Reward
    from tdmr1_rewards.calling.reference import Reference
    from tdmr1_rewards.registry import Availability, RegisteredReward

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME|SOURCE", help="A reward of `tdmr1 rewards list`, file.py:fn, package.module:fn or remote:URL."
    ),
]
OptionsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="KEY=VALUE", help="An option of the reward (`tdmr1 rewards info` lists them). Repeatable."
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="Device of the reward: cpu, cuda, cuda:1 …")
]
PythonOption = Annotated[
    Path | None,
    typer.Option(
        "--python",
        metavar="FILE",
        help="Run the reward in a process of this interpreter, such as /path/to/venv/bin/python.",
    ),
]


@dataclass(frozen=True)
class Built:
    """A reward that is built but not set up, and its registry entry.

    With `python`, `reward` is a reference: the reward is built in a process of that interpreter.
    """

    found: RegisteredReward
    reward: Reward | Reference
    python: Path | None = None


def look_up(source: str, python: Path | None = None) -> RegisteredReward:
    """The reward that a source names; a file or module is imported by the interpreter `python` if that is given.

    Raises Tdmr1Error if there is none.
    """
    from tdmr1_rewards.sources.source import find_reward

    return find_reward(find_plugins().rewards, source, python)


def interpreter(python: Path | None) -> Path | None:
    """The absolute path of an interpreter."""
    return None if python is None else python.expanduser().absolute()


def build(source: str, options: Sequence[str], python: Path | None = None) -> Built:
    """Build the reward that a source names. Raises Tdmr1Error if a package that it needs is not installed here.

    A reward of another interpreter, `python`, is not built yet; what it needs is not looked up here.
    """
    from tdmr1_rewards.sources.source import create_reward, reference_for, usage

    python = interpreter(python)
    found = look_up(source, python)
    available = availability(found.spec)
    if python is None and not available.usable:
        raise Tdmr1Error(
            f"{found} needs {' and '.join(available.missing)}, which is not installed",
            available.remedy or "install it",
            code="dependency-missing",
            values={"reward": found.spec.name, "missing": list(available.missing)},
        )
    given = parse_options(options)
    used_as = usage(found, given)
    if used_as is not None:
        message(f"reward {found.spec.name}: used as {used_as}")
    if python is not None:
        return Built(found, reference_for(found, given, python), python)
    return Built(found, create_reward(found, given))


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options from `KEY=VALUE` arguments; values are YAML. Raises Tdmr1Error for one that is malformed or set twice."""
    import yaml

    from tdmr1_core.settings.yaml_text import explain, load_yaml

    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise Tdmr1Error(
                f"--option needs KEY=VALUE, not {text!r}",
                "write for example `--option threshold=0.5`",
                code="argument-invalid",
                values={"argument": "--option", "value": text},
            )
        try:
            parsed = load_yaml(value)
        except yaml.YAMLError as error:
            problem, _ = explain(error)
            raise Tdmr1Error(
                f"the value of --option {text!r} is not valid YAML: {problem}",
                "quote it, as in 'key=\"text\"'",
                code="argument-invalid",
                values={"argument": "--option", "value": text},
            ) from error
        if key in options and repr(options[key]) != repr(parsed):
            raise Tdmr1Error(
                f"--option sets {key} twice, to {options[key]!r} and to {parsed!r}",
                "remove one of the two",
                code="argument-invalid",
                values={"argument": "--option", "value": text},
            )
        options[key] = parsed
    remember_tree(options)
    return options


def document(found: RegisteredReward, available: Availability) -> dict[str, Any]:
    """The registry entry of a reward as plain data, with its availability."""
    origin = {"distribution": found.provenance.distribution, "version": found.provenance.version}
    usable = {"usable": available.usable, "missing": list(available.missing), "remedy": available.remedy}
    rivals = [str(rival) for rival in found.rivals]
    return {**asdict(found.spec), **origin, **usable, "rivals": rivals, "taken_as": found.taken_as}
