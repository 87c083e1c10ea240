import sys

import pytest

from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.registry import availability

pytestmark = pytest.mark.unit


def spec(*requires, install=None):
    return RewardSpec(name="x", summary="", factory="a:b", default_prompts="count", requires=requires, install=install)


@pytest.mark.parametrize("requires", [(), ("json",), ("no_such_20|json",), ("json|no_such_20",), ("json.decoder",)])
def test_a_reward_is_usable_if_its_modules_are_installed(requires):
    found = availability(spec(*requires, install="tdmr1[x]"))
    assert found.usable
    assert str(found) == "yes"
    assert found.remedy is None


@pytest.mark.parametrize(
    ("requires", "install", "text"),
    [
        (("no_such_20",), None, "no, needs no_such_20"),
        (("no_such_20", "json"), "tdmr1[x]", "no, needs no_such_20: pip install 'tdmr1[x]'"),
        (("no_such_20|no_such_21", "no_such_22"), None, "no, needs no_such_20 or no_such_21 and no_such_22"),
        (("no_such_20.sub",), None, "no, needs no_such_20.sub"),
    ],
)
def test_the_text_names_what_is_missing(requires, install, text):
    found = availability(spec(*requires, install=install))
    assert not found.usable
    assert str(found) == text


def test_nothing_is_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    assert availability(spec("this")).usable
    assert "this" not in sys.modules


def test_a_module_that_is_blocked_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked_23", None)
    assert not availability(spec("blocked_23")).usable
