"""What `train` checks and prints before a run begins or resumes."""

from __future__ import annotations

import pytest
import yaml
from support.errors import raises

from tdmr1_cli.main import main
from tdmr1_cli.run_command import resume_run, start_run
from tdmr1_core.config_loading import dump, parse_assignments, read_preset, resolve
from tdmr1_core.preflight.layers import Flags
from tdmr1_core.runs import run as run_module
from tdmr1_core.runs.checkpoints.resume import ResumePoint, load_run_config
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.unit


class Reached(Exception):
    """Raised instead of executing the run."""


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """Resumes a folder with the settings of the tiny preset and some edits, up to its execution."""

    def reached(*_):
        raise Reached

    def resume(*edits: str) -> None:
        rewards = {"rewards": [{"name": "object_count"}]}
        config = resolve([rewards, read_preset("tiny"), parse_assignments(edits)])
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(dump(config)))
        resume_run(tmp_path, Flags(), None, dry_run=False, quiet=True)

    monkeypatch.setattr(
        run_module,
        "find_resume_point",
        lambda folder, iterations, changes: ResumePoint(load_run_config(folder), folder),
    )
    monkeypatch.setattr(Run, "execute", reached)
    return resume


def test_a_resume_reports_ineffective_settings(resumed, capsys):
    with pytest.raises(Reached):
        resumed("evaluation.every=500", "guard.enabled=false", "guard.threshold=3")
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert [line.split()[1] for line in notes] == ["evaluation.every", "guard.threshold"]
    assert all(line.endswith("[setting-ineffective]") for line in notes)


def test_a_resume_without_ineffective_settings_prints_no_note(resumed, capsys):
    with pytest.raises(Reached):
        resumed()
    assert "note: " not in capsys.readouterr().err


def test_a_resume_rejects_contradictory_settings(resumed):
    with raises("setting-conflict"):
        resumed("guard.stop=true", "evaluation.every=70")


@pytest.mark.parametrize(
    ("setting", "code"),
    [("prompts.evaluate=nosuch", "prompts-unknown"), ("timesteps.per_iteration=5", "setting-conflict")],
)
def test_nothing_is_written_for_settings_that_are_rejected(tmp_path, monkeypatch, capsys, setting, code):
    monkeypatch.chdir(tmp_path)
    for dry in (True, False):
        with raises(code):
            start_run("train", Flags(sets=[setting]), tmp_path / "run", dry_run=dry, quiet=True)
    config = resolve([{"rewards": [{"name": "object_count"}]}, parse_assignments([setting])])
    with raises(code):
        Run.create(config, tmp_path / "run")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(parse_assignments([setting])))
    assert main(["config", "validate", "mine.yaml"]) == 2
    assert f"[{code}]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
