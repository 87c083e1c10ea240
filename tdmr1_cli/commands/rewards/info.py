"""`tdmr1 rewards info`: describes one reward and how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tdmr1_cli.commands.rewards.common import SourceArgument, document, look_up
from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, fields, table
from tdmr1_rewards.registry import availability

if TYPE_CHECKING:
    from tdmr1_rewards.registry import RegisteredReward

PLAIN = (str, int, float, bool, list, dict, type(None))


def command(source: SourceArgument, json: JsonOption = False) -> None:
    """Describe a reward and its options, with a command and settings to copy."""
    import yaml

    found = look_up(source)
    options = _options(found, source)
    train = f"tdmr1 train --reward {source}"
    settings = {"rewards": [_settings(found, source, options)]}
    if json:
        emit_json({**document(found), "option_list": options, "command": train, "config": settings})
        return
    fields(_facts(found))
    if options:
        data("")
        defaults = ["required" if item["required"] else str(item["default"]) for item in options]
        rows = [[item["name"], default, item["meaning"]] for item, default in zip(options, defaults, strict=True)]
        table(["option", "default", "meaning"], rows)
    optional = [item for item in options if not item["required"] and item["default"] is not None]
    if optional:
        train += f" --set rewards.0.options.{optional[0]['name']}={optional[0]['default']}"
    data(f"\n{train}\n\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}".rstrip())


def _facts(found: RegisteredReward) -> list[tuple[str, str]]:
    spec = found.spec
    facts = {
        "reward": spec.name,
        "what it rewards": spec.summary,
        "range": spec.score_range,
        "needs": spec.needs,
        "usable here": str(availability(spec)),
        "from": f"{found.provenance} ({found.provenance.module})",
        "used as": found.taken_as,
        "prompts": spec.default_prompts or "the first prompt set of the model (or --prompts)",
        "preset": spec.default_preset,
        "images": "PIL images" if spec.image_format == "pil" else "a uint8 array (N, height, width, 3)",
        "batch size": f"{spec.batch_size}, whole groups only" if spec.groupwise else spec.batch_size,
        "time-out": "none" if spec.timeout is None else f"{spec.timeout:g} s per call",
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _settings(found: RegisteredReward, source: str, options: list[dict[str, Any]]) -> dict[str, Any]:
    """The reward as an entry of `rewards` in config.yaml, with the default of each option."""
    settings: dict[str, Any] = {"name": found.spec.name}
    if source != found.spec.name:
        settings["source"] = source
    settings["weight"] = 1.0
    defaults = {item["name"]: item["default"] for item in options if not item["required"]}
    return {**settings, "options": defaults} if defaults else settings


def _options(found: RegisteredReward, source: str) -> list[dict[str, Any]]:
    """The options: the fields of the options model, or the extra parameters of a function."""
    if found.spec.options is None:
        return _parameters(found, source)
    from tdmr1_rewards.calling.reference import resolve

    model = resolve(found.spec.options, str(found))
    return [
        {
            "name": name,
            "required": field.is_required(),
            "default": None if field.is_required() else _plain(field.get_default(call_default_factory=True)),
            "meaning": field.description or "",
        }
        for name, field in model.model_fields.items()
    ]


def _parameters(found: RegisteredReward, source: str) -> list[dict[str, Any]]:
    from tdmr1_rewards.api import RewardSpec
    from tdmr1_rewards.sources.signatures import recognise
    from tdmr1_rewards.sources.source import parse_source

    target = parse_source(source).load() if found.taken_as else None
    if target is None or isinstance(target, RewardSpec):
        return []
    return [
        {"name": name, "required": False, "default": _plain(default), "meaning": ""}
        for name, default in recognise(target, source).options.items()
    ]


def _plain(value: Any) -> Any:
    """A default value as plain data for YAML and JSON."""
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    return value if isinstance(value, PLAIN) else str(value)
