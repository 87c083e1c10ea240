import json
import os
import re

import pytest
from typer.main import get_command

from tdmr1_cli import main as entry
from tdmr1_cli.app import build_app
from tdmr1_cli.main import main
from tdmr1_cli.signals import Stopped
from tdmr1_core.errors import Tdmr1Error

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """Restores the environment variables that main sets."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("TDMR1_DEBUG", None)


@pytest.fixture
def raising(monkeypatch):
    """Makes every command raise an exception."""

    def arrange(error):
        def run(arguments):
            raise error

        monkeypatch.setattr(entry, "_run", run)

    return arrange


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (Tdmr1Error("no", "yes"), 2, "error: no\n\nhint: yes\n"),
        (Tdmr1Error("no"), 2, "error: no\n\nhint: set TDMR1_DEBUG=1 to see the traceback\n"),
        (Tdmr1Error("no", "yes", code="usage"), 2, "error: no [usage]\n\nhint: yes\n"),
        (Stopped("left", "go on"), 130, "left\n\nhint: go on\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_each_exception_has_a_message_and_an_exit_code(raising, capsys, error, code, printed):
    raising(error)
    assert main([]) == code
    assert capsys.readouterr() == ("", printed)


def test_an_internal_error_names_the_variable_that_shows_the_traceback(raising, capsys):
    raising(ValueError("a\nb"))
    assert main([]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: internal error: ValueError: a b [unexpected]\n\nhint: set TDMR1_DEBUG=1")
    os.environ["TDMR1_DEBUG"] = "1"
    assert main([]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_with_json_an_error_is_also_printed_as_json_on_stdout(raising, capsys):
    raising(Tdmr1Error("no x", "yes", code="reward-unknown", values={"name": "x"}))
    assert main(["rewards", "list", "--json"]) == 2
    out, err = capsys.readouterr()
    error = {"code": "reward-unknown", "message": "no x", "hint": "yes", "values": {"name": "x"}}
    assert json.loads(out) == {"error": error}
    assert err == "error: no x [reward-unknown]\n\nhint: yes\n"


def test_with_json_an_internal_error_keeps_exit_code_1(raising, capsys):
    raising(ValueError("a"))
    assert main(["rewards", "list", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "unexpected"


def test_out_of_memory_names_the_setting_that_helps(raising, capsys):
    raising(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"))
    assert main([]) == 1
    assert "batch.micro_batch" in capsys.readouterr().err


def test_an_interrupted_command_exits_with_130(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("tdmr1_cli.commands.plugins.find_plugins", interrupt)
    assert main(["plugins"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_without_a_command_the_help_is_printed(capsys):
    assert main([]) == 0
    assert "tdmr1 train --output runs/first" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["models"], ["sample"], ["sample", "x", "--output", "y", "--role", "z"], ["plugins", "x"]]
)
def test_a_usage_error_is_one_message_with_a_hint(capsys, arguments):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: [^\n]+ \[usage\]\n\nhint: [^\n]+\n", err)


def all_commands(group, path=()):
    """Every command below a group, with its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_and_option_has_a_help_text():
    commands = dict(all_commands(get_command(build_app())))
    assert len(commands) == 22
    unhelpful = [(words, each.name) for words, command in commands.items() for each in command.params if not each.help]
    assert unhelpful == []
    assert [words for words, command in commands.items() if not command.help] == []
