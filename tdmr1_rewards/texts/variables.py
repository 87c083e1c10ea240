"""Puts the values of environment variables in the place of their names, in options and addresses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.texts.redaction import IN_URL, REFERENCE, redacted_places, remember


def expand(value: Any, owner: object) -> Any:
    """Options, or the address of a server, with the values of the environment variables that they name.

    Raises Tdmr1Error for a variable that is not set, and for a secret that was redacted.
    """
    for place, _ in redacted_places(value, "options"):
        raise Tdmr1Error(
            f"{owner}: the secret in {place} was not stored, so it is missing",
            "give it again, for example as env:NAME, the name of an environment variable that holds it",
            code="token-invalid",
            values={"reward": str(owner), "option": place},
        )

    def variable(name: str) -> str:
        if name not in os.environ:
            raise Tdmr1Error(
                f"{owner}: the environment variable {name}, which should hold a secret, is not set",
                f"export {name}=…",
                code="token-invalid",
                values={"reward": str(owner), "variable": name},
            )
        remember(os.environ[name])
        return os.environ[name]

    def expanded(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: expanded(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [expanded(item) for item in part]
        if not isinstance(part, str):
            return part
        if named := REFERENCE.fullmatch(part):
            return variable(next(filter(None, named.groups())))
        return IN_URL.sub(lambda named: variable(named[1]), part) if "://" in part else part

    return expanded(value)
