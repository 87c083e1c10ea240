"""What the verbs of `tdmr1 rewards` share: the arguments, and a reward that is found and built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.commands.plugins import find_plugins
from tdmr1_cli.output import message
from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.sources.availability import availability

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
    typer.Option("--option", metavar="KEY=VALUE", help="An option of the reward (`info` lists them); may be repeated."),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="DEVICE", help="Where it runs: cpu, cuda, cuda:1 …")]


@dataclass(frozen=True)
class Built:
    """A reward that is ready for `setup`, with what is known of it."""

    found: RegisteredReward
    reward: Reward


def look_up(source: str) -> RegisteredReward:
    """What a source names. Raises Tdmr1Error if there is no such thing."""
    from tdmr1_rewards.sources.source import find_reward

    return find_reward(find_plugins().rewards, source)


def build(source: str, options: Sequence[str]) -> Built:
    """Build what a source names, and say what it was taken for. Raises Tdmr1Error where something is missing for it."""
    from tdmr1_rewards.sources.source import create_reward, find_reward

    found = find_reward(find_plugins().rewards, source)
    available = availability(found.spec)
    if not available.usable:
        remedy = available.remedy or "install that first"
        raise Tdmr1Error(f"{found} needs {' and '.join(available.missing)}, which is not installed here", remedy)
    if found.taken_as:
        message(f"reward {found.spec.name}: taken as {found.taken_as}")
    return Built(found, create_reward(found, parse_options(options)))


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` arguments; values are read as YAML. Raises Tdmr1Error for one without a key or an equals sign."""
    import yaml

    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise Tdmr1Error(f"--option {text!r} is not an option", "write it as `--option threshold=0.5`")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise Tdmr1Error(
                f"the value of --option {text!r} can't be read", "quote it, as in 'key=\"text\"'"
            ) from error
    return options


def document(found: RegisteredReward) -> dict[str, Any]:
    """All that is known of a reward, as plain data."""
    origin = {"distribution": found.provenance.distribution, "version": found.provenance.version}
    available = availability(found.spec)
    usable = {"usable": available.usable, "missing": list(available.missing), "remedy": available.remedy}
    rivals = [str(rival) for rival in found.rivals]
    return {**asdict(found.spec), **origin, **usable, "rivals": rivals, "taken_as": found.taken_as}
