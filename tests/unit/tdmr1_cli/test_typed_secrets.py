"""The hidden prompt for secrets that a run does not store."""

from __future__ import annotations

import getpass
import io
import sys

import pytest

from tdmr1_cli.typed_secrets import with_typed_secrets
from tdmr1_core.config import RewardConfig
from tdmr1_core.preflight.layers import Flags, run_changes
from tdmr1_rewards.texts.redaction import redact

pytestmark = pytest.mark.unit
REWARDS = [("rewards.0", RewardConfig(name="a", options={"token": "***", "url": "http://me:***@host/x", "size": 3}))]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_secrets_are_typed_in_a_terminal(monkeypatch):
    asked: list[str] = []
    typed = iter(["a: {b", "p@ss"])
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(getpass, "getpass", lambda prompt: asked.append(prompt) or next(typed))
    flags = with_typed_secrets(Flags(sets=["threads=1"]), REWARDS)
    assert ["rewards.0.options.token" in asked[0], "rewards.0.options.url" in asked[1], len(asked)] == [True, True, 2]
    options = {"token": "a: {b", "url": "http://me:p%40ss@host/x"}
    assert run_changes(flags) == {"threads": 1, "rewards": {"0": {"options": options}}}
    assert redact("a: {b p@ss") == "*** ***"


def test_nothing_is_asked_without_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    flags = Flags()
    assert with_typed_secrets(flags, REWARDS) is flags
