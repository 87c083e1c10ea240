"""Random settings and command lines from hypothesis: invalid ones end with exit code 2, a message and a hint.

They run in this process and load no model. A command line that happens to be valid only prints its settings
(`--dry-run`) and ends with exit code 0.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdmr1_cli import main as entry
from tdmr1_cli.main import main
from tdmr1_cli.run_command import start_run
from tdmr1_core import plugins
from tdmr1_core.config_loading import describe
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.planning import estimate
from tdmr1_core.preflight.layers import Flags

pytestmark = pytest.mark.unit

NAMES = [name for name, *_ in describe()]
NUMBERS = [name for name, kind, *_ in describe() if "float" in kind]
NUMBERS += ["rewards.0.weight", "rewards.0.timeout", "evaluation.rewards.0.weight"]
"""Settings that are floats."""
LINES = ("evaluate @", "export @", "sample @ --prompt @ --output @", "report @", "probe @ --images @", "@ @")
LINES += ("train --resume @", "models info @", "rewards info @", "rewards try @ @ --prompt @", "rewards check @")
LINES += ("rewards new @", "plugins @", "config validate @", "config show --preset @", "config show --set @")
LINES += ("plan --model @",)
"""Command lines in which each @ is replaced by random text. None of them is slow if it happens to be valid."""
OPTIONS = ("--set", "--reward", "--preset", "--model", "--model-path", "--lora", "--prompts", "--iterations", "--seed")
OPTIONS += ("--output", "--resume", "--images", "--role", "--json", "--nothing", "-x", "--", "show", "validate", "info")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
WORDS = (" ", "-1", "0", "1e999", "nan", "null", "true", "[]", "{}", "[1", "{a: b", "a: b: c", "&a [*a]", "*a", "0x")
WORDS += ("!!python/object:os.system x", "2026-13-45", "0o9", "1_000", "::", "=", "a=b", "..", "~", "'", '"', "\t", "@")
WORDS += ("9" * 5000, "1" * 400 + ".5", "remote:", "remote:http://", "x.py:", ":f", "a:b:c:d", "/", "/dev/null", "%x")
TYPED = st.sampled_from(["", "!", *WORDS])
NASTY = TYPED | st.just("\ud800")
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.dates(), st.binary(max_size=4))
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | st.integers(), inner, max_size=3),
    max_leaves=6,
)
SECTIONS = st.sampled_from(["rewards", "model", "batch", "kind", "guard", "prompts", "evaluation", "tdmr1"])


def no_estimate(*_: Any) -> Any:
    raise Tdmr1Error("not estimated in this test")


def search(examples: int) -> Any:
    """The settings of hypothesis: it tries the same examples in every run."""
    unconcerned = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=unconcerned)


@pytest.fixture(scope="module")
def found():
    return plugins.discover()


@pytest.fixture(autouse=True)
def elsewhere(found, tmp_path, monkeypatch):
    """Runs in a temporary folder, discovers plugins once, and restores the environment variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ, "HF_HUB_OFFLINE": "1"})
    monkeypatch.setattr(plugins, "discover", lambda: found)
    monkeypatch.setattr(estimate.Planner, "plan", no_estimate)  # it would build a network


def check(capsys: Any, arguments: list[str]) -> str:
    """Run a command line and check its exit code and output. Returns the error message; empty if the line is valid."""
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr().err
    assert code in (0, 2), (arguments, said)
    assert "Traceback" not in said
    if code == 0:
        return ""
    message, _, hint = said.partition("error: ")[2].partition("\n\nhint: ")
    assert message.strip(), (arguments, said)
    assert hint.strip(), (arguments, said)
    assert len(message) + len(hint) < 4000, len(message)
    return message


def check_settings(capsys: Any, monkeypatch: Any, flags: Flags) -> str:
    """Check settings as `tdmr1 train … --dry-run` does after parsing its arguments."""
    with monkeypatch.context() as patched:
        dry = partial(start_run, "train", flags, None, dry_run=True, quiet=True)
        patched.setattr(entry, "_run", lambda arguments: dry() or 0)
        return check(capsys, [])


def write(tree: Any) -> Flags:
    Path("config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8", errors="surrogatepass")
    return Flags(config=Path("config.yaml"))


@search(200)
@given(st.sampled_from(NAMES), TREES)
def test_any_value_of_any_setting(capsys, monkeypatch, name, value):
    tree: Any = value
    for part in reversed(name.split(".")):
        tree = {part: tree}
    check_settings(capsys, monkeypatch, write(tree))


@search(100)
@given(TREES | st.dictionaries(SECTIONS | TEXT, TREES, max_size=3))
def test_any_tree(capsys, monkeypatch, tree):
    check_settings(capsys, monkeypatch, write(tree))


@search(100)
@given(st.binary(max_size=60) | NASTY.map(lambda text: text.encode(errors="surrogatepass")))
def test_any_file(capsys, monkeypatch, content):
    Path("config.yaml").write_bytes(content)
    check_settings(capsys, monkeypatch, Flags(config=Path("config.yaml")))


@search(100)
@given(st.sampled_from(NAMES) | TEXT, NASTY | TEXT)
def test_any_assignment(capsys, monkeypatch, name, value):
    check_settings(capsys, monkeypatch, Flags(sets=[f"{name}={value}"]))


@search(60)
@given(
    st.sampled_from(NUMBERS), st.sampled_from(["nan", ".nan", ".inf", "-.inf", "1e999", "-1e999", "inf", "Infinity"])
)
def test_a_number_that_is_not_finite_is_refused(capsys, monkeypatch, name, value):
    assert name in check_settings(capsys, monkeypatch, Flags(sets=[f"{name}={value}"]))


@search(30)
@given(st.integers(1, 8), st.integers(1, 900), st.booleans())
def test_more_points_than_there_are_steps_are_refused(capsys, monkeypatch, steps, more, said):
    """Also if the number of steps is not set and comes from the model."""
    steps, sets = (steps, [f"rollout.steps={steps}"]) if said else (4, [])
    wanted = steps + more
    message = f"timesteps.per_iteration is {wanted}, but there are only {steps} steps"
    assert message in check_settings(capsys, monkeypatch, Flags(sets=[*sets, f"timesteps.per_iteration={wanted}"]))


@search(100)
@given(st.sampled_from(["train", "distill"]), st.lists(st.sampled_from(OPTIONS) | TYPED | TEXT, min_size=1, max_size=5))
def test_any_command_line_of_a_run(capsys, verb, rest):
    check(capsys, [verb, "--dry-run", *rest])


@search(150)
@given(st.data(), st.sampled_from(LINES))
def test_any_words_of_any_command(capsys, data, line):
    check(capsys, [data.draw(TYPED | TEXT) if word == "@" else word for word in line.split()])
