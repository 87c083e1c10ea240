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
    assert printed.startswith("error: internal error: ValueError: a b (")
    assert "test_main.py:" in printed
    assert "[unexpected]\n\nhint: set TDMR1_DEBUG=1" in printed
    os.environ["TDMR1_DEBUG"] = "1"
    assert main([]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_traceback_has_no_secret(raising, capsys):
    """Neither that of a URL nor one that the command line has named."""
    error = Tdmr1Error("no", "yes")
    error.__cause__ = ValueError("GET http://me:pass-word@host/?token=abc by swordfish failed")
    raising(error)
    os.environ["TDMR1_DEBUG"] = "1"
    assert main(["train", "--set", "rewards.0.options.token=swordfish"]) == 2
    assert "ValueError: GET http://me:***@host/?token=*** by *** failed" in capsys.readouterr().err


def test_with_json_an_error_is_also_printed_as_json_on_stdout(raising, capsys):
    raising(Tdmr1Error("no x", "yes", code="reward-unknown", values={"name": "x"}))
    assert main(["rewards", "list", "--json"]) == 2
    out, err = capsys.readouterr()
    error = {"code": "reward-unknown", "message": "no x", "hint": "yes", "values": {"name": "x"}}
    assert json.loads(out) == {"error": error}
    assert err == "error: no x [reward-unknown]\n\nhint: yes\n"


@pytest.mark.parametrize(
    ("line", "code", "values"),
    [
        ("rewards info nosuch", "reward-unknown", {"reward": "nosuch", "broken_plugins": {}}),
        ("rewards check nosuch", "reward-unknown", {"reward": "nosuch", "broken_plugins": {}}),
        ("rewards try nosuch image.png --prompt x", "file-missing", {"path": "image.png"}),
        ("models info nosuch", "model-unknown", {"model": "nosuch"}),
        ("plan --gpu x", "argument-invalid", {"gpu": "x", "near": []}),
        ("config show --preset nosuch", "preset-unknown", {"name": "nosuch"}),
        ("sample nosuch --output images --prompt x", "target-unknown", {"target": "nosuch"}),
        ("evaluate nosuch", "target-unknown", {"target": "nosuch"}),
        ("evaluate runs/nosuch", "target-unknown", {"target": "runs/nosuch"}),
        ("sample ./nosuch --prompt x", "target-unknown", {"target": "./nosuch"}),
        ("probe runs/nosuch", "target-unknown", {"target": "runs/nosuch"}),
        ("probe nosuch", "model-unknown", {"model": "nosuch"}),
        ("export nosuch --output lora", "run-folder-missing", {"folder": "nosuch"}),
        ("report nosuch", "run-folder-missing", {"folder": "nosuch"}),
        ("label nosuch", "file-missing", {"path": "nosuch"}),
        ("plugins --nosuch", "usage", {"command": "tdmr1 plugins"}),
    ],
)
def test_with_json_a_failed_command_prints_exactly_one_document(tmp_path, monkeypatch, capsys, line, code, values):
    monkeypatch.chdir(tmp_path)
    assert main([*line.split(), "--json"]) == 2
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert list(document) == ["error"]
    assert list(document["error"]) == ["code", "message", "hint", "values"]
    assert document["error"]["code"] == code
    assert document["error"]["values"] == values
    assert f"error: {document['error']['message']} [{code}]" in err


def test_config_validate_prints_the_error_in_its_own_document(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "validate", "missing.yaml", "--json"]) == 2
    (verdict,) = json.loads(capsys.readouterr().out)
    assert {name: verdict[name] for name in ("file", "valid", "code", "values")} == {
        "file": "missing.yaml",
        "valid": False,
        "code": "config-unreadable",
        "values": {"file": "missing.yaml"},
    }


def test_with_json_a_stopped_command_prints_an_error(raising, capsys):
    raising(KeyboardInterrupt())
    assert main(["rewards", "list", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "interrupted"


def test_with_json_an_internal_error_keeps_exit_code_1(raising, capsys):
    raising(ValueError("a"))
    assert main(["rewards", "list", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "unexpected"


def test_out_of_memory_names_the_setting_that_helps(raising, capsys):
    raising(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"))
    assert main([]) == 2
    assert "batch.micro_batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_a_full_memory_of_the_machine_is_no_internal_error(raising, capsys, error):
    raising(error)
    assert main([]) == 2
    assert "this machine is out of memory [out-of-memory]" in capsys.readouterr().err


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
    """The commands of a group and its subgroups, each with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_and_option_has_a_help_text():
    commands = dict(all_commands(get_command(build_app())))
    assert len(commands) == 25
    unhelpful = [(words, each.name) for words, command in commands.items() for each in command.params if not each.help]
    assert unhelpful == []
    assert [words for words, command in commands.items() if not command.help] == []
