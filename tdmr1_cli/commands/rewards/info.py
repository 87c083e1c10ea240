"""`tdmr1 rewards info`: describes one reward and how to use it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmr1_cli.commands.rewards.common import PythonOption, SourceArgument, document, interpreter, look_up
from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, fields, table
from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.errors import describe_error

if TYPE_CHECKING:
    from tdmr1_rewards.registry import RegisteredReward
    from tdmr1_rewards.sources.description import Option, RewardDescription

SERVED = ("summary", "score_range", "batch_size", "groupwise", "image_format", "timeout")
"""Fields of the spec that a server decides."""
NOT_ASKED = ("server-unreachable", "server-refused", "token-invalid")
"""Codes of errors after which a server has not described its reward."""
SERVER_PATIENCE = 10.0
"""Seconds to wait for the answer of a server."""


def command(source: SourceArgument, python: PythonOption = None, json: JsonOption = False) -> None:
    """Describe a reward and its options, with a command and settings to copy. A server is asked for its reward."""
    import yaml

    from tdmr1_rewards.sources.description import describe_reward
    from tdmr1_rewards.sources.source import reject_other_process

    python = interpreter(python)
    found, problem = look_up(source, python), None
    if found.source is not None and found.source.kind == "remote":
        if python is not None:
            reject_other_process(found)
        found, problem = _as_served(found)
    described = describe_reward(found, python)
    train = f"tdmr1 train --reward {source}" + (f" --set rewards.0.python={python}" if python else "")
    settings = {"rewards": [_settings(found, source, described.options, python)]}
    if json:
        emit_json({**_document(found, described, problem), "command": train, "config": settings})
        return
    fields(_facts(found, described, python, problem))
    options = described.options
    if options:
        data("")
        defaults = ["required" if option.required else str(option.default) for option in options]
        rows = [[option.name, default, option.meaning] for option, default in zip(options, defaults, strict=True)]
        table(["option", "default", "meaning"], rows)
    optional = [option for option in options if not option.required and option.default is not None]
    if optional:
        train += f" --set rewards.0.options.{optional[0].name}={optional[0].default}"
    data("", train, "", *yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip().split("\n"))


def _as_served(found: RegisteredReward) -> tuple[RegisteredReward, Tdmr1Error | None]:
    """The reward as its server describes it, or the reason why the server has not described it.

    Raises Tdmr1Error if the server has another reward or protocol version.
    """
    from tdmr1_rewards.sources.remote import RemoteOptions, RemoteReward
    from tdmr1_rewards.texts.variables import expand

    assert found.source is not None
    reward = RemoteReward(expand(found.source.place, found), RemoteOptions(patience=0, read_timeout=SERVER_PATIENCE))
    try:
        reward.setup("cpu")
        return replace(found, spec=reward.served_spec(found.spec)), None
    except Tdmr1Error as error:
        if error.code not in NOT_ASKED:
            raise
        hint = None if error.code == "server-unreachable" else error.hint  # it names an option that `info` has not
        return found, Tdmr1Error(error.message, hint, code=error.code, values=error.values)
    finally:
        reward.close()


def _facts(
    found: RegisteredReward, described: RewardDescription, python: Path | None, problem: Tdmr1Error | None
) -> list[tuple[str, str]]:
    from tdmr1_rewards.sources.source import usage

    spec = found.spec
    facts = {
        "reward": spec.name,
        "what it rewards": spec.summary,
        "range": spec.score_range,
        "needs": spec.needs,
        f"usable {f'with {python}' if python else 'here'}": described.available,
        "from": f"{found.provenance} ({found.provenance.module})",
        "used as": usage(found, {}),
        "prompts": spec.default_prompts or "the first prompt set of the model (or --prompts)",
        "preset": spec.default_preset,
        "images": _images(found),
        "batch size": f"{spec.batch_size}, whole groups only" if spec.groupwise else spec.batch_size,
        "time-out": "none" if spec.timeout is None else f"{spec.timeout:g} s per call",
    }
    if problem is not None:
        facts |= dict.fromkeys(("range", "images", "batch size", "time-out"), "decided by the server")
        facts["usable here"] = f"not known: {describe_error(problem)}"
    return [(name, str(value)) for name, value in facts.items() if value]


def _images(found: RegisteredReward) -> str:
    """The format of the images; empty if `used as` has it."""
    if found.image_form is not None:
        return ""
    return "PIL images" if found.spec.image_format == "pil" else "a uint8 array (N, height, width, 3)"


def _document(found: RegisteredReward, described: RewardDescription, problem: Tdmr1Error | None) -> dict[str, Any]:
    """The facts and options as plain data. What only the server knows is null if it has not described its reward."""
    options = [asdict(option) for option in described.options]
    facts = {**document(found, described.available), "option_list": options}
    if problem is None:
        return facts
    unknown = dict.fromkeys((*SERVED, "usable"))
    return {**facts, **unknown, "decided_by_server": list(SERVED), "server_error": problem.document()}


def _settings(found: RegisteredReward, source: str, options: list[Option], python: Path | None) -> dict[str, Any]:
    """The reward as an entry of `rewards` in config.yaml, with the default of each option."""
    settings: dict[str, Any] = {"name": found.spec.name}
    if source != found.spec.name:
        settings["source"] = source
    if python is not None:
        settings["python"] = str(python)
    settings["weight"] = 1.0
    defaults = {option.name: option.default for option in options if not option.required}
    return {**settings, "options": defaults} if defaults else settings
