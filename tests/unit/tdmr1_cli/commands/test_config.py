"""`tdmr1 config show` and `config validate` agree with `tdmr1 train`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.paths import ROOT

from tdmr1_cli.main import main
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.layers import Flags, resolve_settings

pytestmark = pytest.mark.unit

SCRIPT = """
import sys
from tdmr1_cli.main import main
code = main(sys.argv[1:])
print("torch" in sys.modules, file=sys.stderr)
sys.exit(code)
"""


def run(capsys, *arguments):
    """The exit code and the JSON output of a command line."""
    capsys.readouterr()
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def validate(capsys, folder, text):
    """The exit code and the verdict of `config validate` for a file with this text."""
    path = folder / "settings.yaml"
    path.write_text(text)
    code, (verdict,) = run(capsys, "config", "validate", str(path))
    return code, verdict


def shown(capsys, *arguments):
    """The values of `config show` by name."""
    code, settings = run(capsys, "config", "show", *arguments)
    assert code == 0
    return {setting["name"]: setting["value"] for setting in settings}


@pytest.mark.parametrize("sets", [["rewards.0.weight=2"], ["rewards.0.options.score=exact"]])
def test_show_changes_the_default_reward_as_a_training_does(capsys, sets):
    trained = resolve_settings(Flags(sets=sets), "train", discover()).config.rewards
    options = [option for each in sets for option in ("--set", each)]
    (reward,) = shown(capsys, *options)["rewards"]
    assert (reward["name"], reward["weight"], reward["options"]) == (
        trained[0].name,
        trained[0].weight,
        trained[0].options,
    )


def test_show_has_no_reward_unless_one_is_set(capsys):
    assert shown(capsys)["rewards"] == []
    (reward,) = shown(capsys, "--set", "rewards=[{name: geneval}]")["rewards"]
    assert reward["name"] == "geneval"


@pytest.mark.parametrize(
    ("text", "code", "values"),
    [
        ("model: {device: gpu}", "device-unavailable", {"device": "gpu"}),
        ("model: {height: 63}", "setting-invalid", {"height": 63, "multiple": 4}),
        ("model: {width: 4096}", "setting-invalid", {"width": 4096}),
        ("kind: distill\nmodel: {height: 63}", "setting-invalid", {"height": 63}),
        ("model: {name: sd3.5-tdm, height: 516}\nrewards: [{name: ocr_match}]", "setting-invalid", {"multiple": 16}),
        ("model: {name: sd3.5-tdm, width: 8192}\nrewards: [{name: ocr_match}]", "setting-invalid", {"largest": 6144}),
        ("model: {height: 63, device: gpu}", "setting-invalid", {"height": 63}),
    ],
)
def test_validate_refuses_what_a_training_refuses(capsys, tmp_path, text, code, values):
    exit_code, verdict = validate(capsys, tmp_path, text)
    assert (exit_code, verdict["valid"], verdict["code"]) == (2, False, code)
    assert {name: verdict["values"].get(name) for name in values} == values


@pytest.mark.parametrize(
    "text",
    [
        "model: {height: 24, width: 24}",
        "model: {device: cuda}",
        "model: {device: 'cuda:1'}",
        "model: {name: sd3.5-tdm, height: 512}\nrewards: [{name: ocr_match}]",
    ],
)
def test_validate_accepts_what_exists_on_some_machine(capsys, tmp_path, text):
    exit_code, verdict = validate(capsys, tmp_path, text)
    assert (exit_code, verdict["valid"], verdict["code"]) == (0, True, None)


@pytest.mark.parametrize("model", [entry.name for entry in BUILTIN_MODELS if not entry.needs_lora])
def test_validate_accepts_the_default_size_of_every_model(capsys, tmp_path, model):
    exit_code, verdict = validate(
        capsys, tmp_path, f"kind: distill\nprompts: {{train: count}}\nmodel: {{name: {model}}}"
    )
    assert (exit_code, verdict["code"]) in ((0, None), (2, "prompts-unknown"))


@pytest.mark.parametrize(
    ("text", "imported"), [("seed: 1", False), ("model: {height: 63, device: gpu}", False), ("seed: yes", False)]
)
def test_validate_imports_torch_only_for_a_device(tmp_path, text, imported):
    (tmp_path / "settings.yaml").write_text(text)
    command = [sys.executable, "-c", SCRIPT, "config", "validate", str(tmp_path / "settings.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == str(imported), done.stderr
