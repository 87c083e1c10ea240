"""Commands that list models, rewards, plugins and settings; a broken plugin is listed with its error."""

import json

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.integration

PRESETS = sorted((ROOT / "tdmr1_core" / "presets").glob("*.yaml"))


@pytest.fixture
def broken_plugin(tmp_path):
    """A folder with an installed distribution whose module raises on import."""
    (tmp_path / "broken_reward.py").write_text("raise RuntimeError('the weights are gone')\n")
    info = tmp_path / "broken_reward-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-reward\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tdmr1]\nbroken = broken_reward\n")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "list"],
        ["models", "info", "tiny-tdm"],
        ["rewards", "list"],
        ["rewards", "info", "object_count"],
        ["plugins"],
        ["config", "show", "--preset", "tiny", "--set", "batch.groups=3"],
        ["config", "presets"],
    ],
)
def test_listings_as_json_and_as_tables(tdmr1, arguments):
    assert json.loads(tdmr1(*arguments, "--json").stdout)
    assert tdmr1(*arguments, fresh=True).stdout.strip()


def test_a_broken_plugin_is_named_and_nothing_else_breaks(tdmr1, broken_plugin):
    path = f"{ROOT}:{broken_plugin}"
    document = json.loads(tdmr1("plugins", "--json", PYTHONPATH=path).stdout)
    (record,) = [item for item in document["plugins"] if item["plugin"] == "broken"]
    assert record["distribution"] == "broken-reward"
    assert "the weights are gone" in record["error"]
    assert "the weights are gone" in tdmr1("plugins", PYTHONPATH=path).stdout
    listed = tdmr1("rewards", "list", PYTHONPATH=path)
    assert "object_count" in listed.stdout
    assert "the weights are gone" in listed.stderr
    tdmr1("train", "--dry-run", PYTHONPATH=path)


def test_disabled_plugins_are_listed_without_an_error(tdmr1, broken_plugin):
    path, disabled = f"{ROOT}:{broken_plugin}", "broken,nonesuch"
    document = json.loads(tdmr1("plugins", "--json", PYTHONPATH=path, TDMR1_DISABLE_PLUGINS=disabled).stdout)
    (record,) = [item for item in document["plugins"] if item["plugin"] == "broken"]
    assert record["disabled"]
    assert record["error"] is None
    assert document["unmatched"] == ["nonesuch"]


def test_every_preset_is_valid(tdmr1, tmp_path):
    """With a model for which the prompts of the preset exist."""
    assert PRESETS
    files = [tmp_path / path.name for path in PRESETS]
    for path in files:
        model = "tiny-words-tdm" if "words" in path.stem else "tiny-tdm"
        path.write_text(f"extends: {path.stem}\nmodel: {{name: {model}}}\n")
    done = tdmr1("config", "validate", *files)
    assert done.stdout.splitlines() == [f"{path}: ok" for path in files]
    assert "note: " not in done.stderr


def test_invalid_files_are_reported_as_json_too(tdmr1, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("sed: 1\n")
    valid, wrong = json.loads(tdmr1("config", "validate", PRESETS[0], path, "--json", code=2).stdout)
    assert valid["valid"]
    assert not wrong["valid"]
    assert (wrong["code"], wrong["values"]["settings"]) == ("setting-unknown", ["sed"])
    assert "'seed'" in wrong["hint"]


def test_a_dry_run_prints_valid_settings(tdmr1, tmp_path):
    done = tdmr1("train", "--reward", "object_count:2", "--set", "rewards.0.options.score=exact", "--dry-run")
    path = tmp_path / "config.yaml"
    path.write_text(done.stdout)
    assert "score: exact" in done.stdout
    tdmr1("config", "validate", path)
