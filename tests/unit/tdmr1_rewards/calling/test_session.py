"""Rewards that exist only in this Python program."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from support.errors import raises

from tdmr1_rewards.calling import session
from tdmr1_rewards.registry import RewardRegistry
from tdmr1_rewards.sources.source import create_reward, find_reward, reference_for

pytestmark = pytest.mark.unit

NONE = RewardRegistry([])
SOURCE = session.source_of("bright")


def bright(images, prompts):
    return [1.0] * len(images)


def dark(images, prompts):
    return [0.0] * len(images)


def test_an_object_is_found_and_built_while_it_is_provided():
    with session.provide({"bright": bright}):
        found = find_reward(NONE, SOURCE)
        assert found.spec.name == "bright"
        assert "flow_grpo" in str(found.taken_as)
        assert create_reward(found, {}) is not None
    with raises("reward-import", rewards=["bright"]):
        find_reward(NONE, SOURCE)


def test_contexts_restore_the_former_objects():
    with session.provide({"bright": bright}):
        with session.provide({"bright": dark, "dark": dark}):
            assert session.bright is dark
        assert session.bright is bright
        assert not session.is_provided("dark")


def test_the_fingerprint_changes_with_the_code():
    with session.provide({"a": bright, "b": bright, "c": dark, "d": functools.partial(bright), "e": len}):
        a, b, c, d = (session.fingerprint(name).partition(" of ")[2] for name in "abcd")
        assert a == b == d != c
        assert session.fingerprint("e") == "e of unknown code"
        assert find_reward(NONE, session.source_of("a")).fingerprint() == session.fingerprint("a")


def test_another_process_cannot_have_it():
    with session.provide({"bright": bright}):
        found = find_reward(NONE, SOURCE)
        for python in (None, Path("python")):
            with raises("setting-conflict", reward="bright"):
                reference_for(found, {}, python)


def test_the_name_is_read_from_a_source_of_this_kind_only():
    assert session.name_in("package.module:bright") is None
    assert session.name_in(None) is None
    assert session.name_in(SOURCE) == "bright"


@pytest.mark.parametrize("name", ["torch", "bright", "__path__"])
def test_other_names_are_attributes_that_the_module_does_not_have(name):
    """Python, pickle and torch.compile ask loaded modules for names, and expect an AttributeError."""
    assert not hasattr(session, name)
