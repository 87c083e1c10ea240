import os
import re

import pytest
from typer.main import get_command

from tdmr1_cli import main as boundary
from tdmr1_cli.app import build_app
from tdmr1_cli.main import main
from tdmr1_cli.signals import Stopped
from tdmr1_core.errors import Tdmr1Error

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What main sets is undone."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("TDMR1_DEBUG", None)


@pytest.fixture
def raising(monkeypatch):
    """Lets every command raise an exception."""

    def arrange(error):
        def run(arguments):
            raise error

        monkeypatch.setattr(boundary, "_run", run)

    return arrange


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Tdmr1Error("no", "yes"), 2, "error: no\n\nhint: yes\n"),
        (Tdmr1Error("no"), 2, "error: no\n\nhint: `tdmr1 --help` lists what there is\n"),
        (Stopped("left", "go on"), 130, "left\n\nhint: go on\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_what_is_told_and_the_exit_code(raising, capsys, error, code, said):
    raising(error)
    assert main([]) == code
    assert capsys.readouterr() == ("", said)


def test_the_unexpected_is_a_sentence_with_the_way_to_its_traceback(raising, capsys):
    raising(ValueError("a\nb"))
    assert main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: something unexpected happened: ValueError: a b\n\nhint: set TDMR1_DEBUG=1")
    os.environ["TDMR1_DEBUG"] = "1"
    assert main([]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_out_of_memory_names_the_setting_that_helps(raising, capsys):
    raising(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"))
    assert main([]) == 1
    assert "batch.micro_batch" in capsys.readouterr().err


def test_an_interrupted_verb_exits_with_130(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("tdmr1_cli.commands.plugins.find_plugins", interrupt)
    assert main(["plugins"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_no_verb_shows_the_help(capsys):
    assert main([]) == 0
    assert "tdmr1 train --output runs/first" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["models"], ["sample"], ["sample", "x", "--output", "y", "--role", "z"], ["plugins", "x"]]
)
def test_a_parser_error_is_a_sentence(capsys, arguments):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: [^\n]+\n\nhint: [^\n]+\n", err)


def all_commands(group, path=()):
    """Every command below a group, with its words."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_verb_and_option_has_its_help():
    commands = dict(all_commands(get_command(build_app())))
    assert len(commands) == 22
    unhelpful = [(words, each.name) for words, command in commands.items() for each in command.params if not each.help]
    assert unhelpful == []
    assert [words for words, command in commands.items() if not command.help] == []
