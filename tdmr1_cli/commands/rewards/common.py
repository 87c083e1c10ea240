"""Shared by the commands of `tdmr1 rewards`: arguments, and finding and building a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.commands.plugins import find_plugins
from tdmr1_cli.output import message
from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.registry import availability

if TYPE_CHECKING:
    from tdmr1_rewards.api import Reward
    from tdmr1_rewards.registry import RegisteredReward

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


@dataclass(frozen=True)
class Built:
    """A reward that is built but not set up, and its registry entry."""

    found: RegisteredReward
    reward: Reward


def look_up(source: str) -> RegisteredReward:
    """The reward that a source names. Raises Tdmr1Error if there is none."""
    from tdmr1_rewards.sources.source import find_reward

    return find_reward(find_plugins().rewards, source)


def build(source: str, options: Sequence[str]) -> Built:
    """Build the reward that a source names. Raises Tdmr1Error if a package that it needs is not installed."""
    from tdmr1_rewards.sources.source import create_reward

    found = look_up(source)
    available = availability(found.spec)
    if not available.usable:
        raise Tdmr1Error(
            f"{found} needs {' and '.join(available.missing)}, which is not installed",
            available.remedy or "install it",
            code="dependency-missing",
            values={"reward": found.spec.name, "missing": list(available.missing)},
        )
    if found.taken_as:
        message(f"reward {found.spec.name}: used as {found.taken_as}")
    return Built(found, create_reward(found, parse_options(options)))


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options from `KEY=VALUE` arguments; values are YAML. Raises Tdmr1Error for a malformed argument."""
    import yaml

    from tdmr1_core.config_loading import load_yaml

    options = {}
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
            options[key] = load_yaml(value)
        except yaml.YAMLError as error:
            raise Tdmr1Error(
                f"the value of --option {text!r} is not valid YAML",
                "quote it, as in 'key=\"text\"'",
                code="argument-invalid",
                values={"argument": "--option", "value": text},
            ) from error
    return options


def document(found: RegisteredReward) -> dict[str, Any]:
    """The registry entry of a reward as plain data, with its availability."""
    origin = {"distribution": found.provenance.distribution, "version": found.provenance.version}
    available = availability(found.spec)
    usable = {"usable": available.usable, "missing": list(available.missing), "remedy": available.remedy}
    rivals = [str(rival) for rival in found.rivals]
    return {**asdict(found.spec), **origin, **usable, "rivals": rivals, "taken_as": found.taken_as}
