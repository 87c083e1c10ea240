"""RUN|MODEL arguments: paths to nothing are refused before the hub is asked; the default folder of samples."""

from __future__ import annotations

import pytest

from tdmr1_cli.commands import sample
from tdmr1_cli.main import main
from tdmr1_cli.targets import check_run, check_target
from tdmr1_core.errors import Tdmr1Error

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with one run and one pipeline."""
    monkeypatch.chdir(tmp_path)
    for file in ("work/first/config.yaml", "models/one/model_index.json"):
        path = tmp_path / file
        path.parent.mkdir(parents=True)
        path.write_text("")
    return tmp_path


@pytest.mark.parametrize("target", ["work/first", "models/one", "models", "sd3.5-tdm", "owner/name"])
def test_runs_pipelines_and_names_are_left_to_the_models(target):
    check_target(target)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("work/frist", "did you mean work/first?"),
        ("./work/frist", "did you mean work/first?"),
        ("work/second-run", "give the --output of an earlier run"),
        ("runs/first", "give the --output of an earlier run"),
        ("../nothing", "give the --output of an earlier run"),
        ("work", "give the --output of an earlier run"),
    ],
)
def test_a_path_to_nothing_is_refused_with_what_was_looked_for(target, hint):
    with pytest.raises(Tdmr1Error, match=r"neither .*config\.yaml nor .*model_index\.json exists") as raised:
        check_target(target)
    assert raised.value.code == "target-unknown"
    assert str(raised.value.hint).startswith(hint)


@pytest.mark.parametrize("command", ["evaluate", "probe", "sample --prompt x"])
def test_commands_do_not_ask_the_hub_for_a_missing_run(command, monkeypatch, capsys):
    monkeypatch.setattr("tdmr1_core.models.registry.entry_of_pipeline", lambda _: pytest.fail("the hub is asked"))
    verb, *options = command.split()
    assert main([verb, "runs/nothing", *options]) == 2
    assert "[target-unknown]" in capsys.readouterr().err


def test_a_missing_run_differs_from_a_folder_that_is_none(folder):
    with pytest.raises(Tdmr1Error, match="there is no such folder") as raised:
        check_run(folder / "work" / "frist")
    assert raised.value.hint == f"did you mean {folder / 'work' / 'first'}?"
    with pytest.raises(Tdmr1Error, match=r"it has no config\.yaml"):
        check_run(folder / "work")


def test_samples_go_to_a_new_folder_of_the_run(folder, monkeypatch):
    monkeypatch.setattr(sample.time, "strftime", lambda _: "now")
    assert str(sample.default_folder("work/first")) == "work/first/samples-now"
    assert str(sample.default_folder("owner/name")) == "samples-name-now"
    (folder / "samples-name-now").mkdir()
    (folder / "samples-name-now-2").mkdir()
    assert str(sample.default_folder("owner/name")) == "samples-name-now-3"


@pytest.mark.parametrize("words", ["", "train", "rewards", "rewards list", "models check", "config show", "sample"])
def test_short_help(words, capsys):
    assert main([*words.split(), "-h"]) == 0
    short = capsys.readouterr().out
    assert main([*words.split(), "--help"]) == 0
    assert short == capsys.readouterr().out
    assert "-h, --help" in short
