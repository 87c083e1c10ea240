"""What is said before a run begins or goes on, and before anything of it is made."""

from __future__ import annotations

import pytest
import yaml

from tdmr1_cli.main import main
from tdmr1_cli.options import Flags
from tdmr1_cli.run_command import continue_run, start_run
from tdmr1_core.config_loading import dump, parse_assignments, read_preset, resolve
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.unit


class Reached(Exception):
    """The checkpoint would be looked for now."""


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """Resumes a folder with the tiny preset's settings and some edits, up to its checkpoint; `resumed(*edits)`."""

    def reached(*_):
        raise Reached

    def resume(*edits: str) -> None:
        rewards = {"rewards": [{"name": "object_count"}]}
        config = resolve([rewards, read_preset("tiny"), parse_assignments(edits)])
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(dump(config)))
        continue_run(tmp_path, Flags(), None, dry_run=False, quiet=True)

    monkeypatch.setattr(Run, "resume", reached)
    return resume


def test_edits_without_effect_are_told_at_a_resume(resumed, capsys):
    with pytest.raises(Reached):
        resumed("evaluation.every=500", "guard.enabled=false", "guard.threshold=3")
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: evaluation.every has no effect: the run has 70 iterations",
        "note: guard.threshold has no effect: guard.enabled is off",
    ]
    with pytest.raises(Reached):
        resumed()
    assert "note: " not in capsys.readouterr().err


def test_contradictions_are_refused_at_a_resume(resumed):
    with pytest.raises(Tdmr1Error, match="there is none before the end"):
        resumed("guard.stop=true", "evaluation.every=70")


@pytest.mark.parametrize("setting", ["prompts.evaluate=nosuch", "timesteps.per_iteration=5"])
def test_nothing_is_made_for_settings_that_can_not_be_met(tmp_path, monkeypatch, capsys, setting):
    monkeypatch.chdir(tmp_path)
    for dry in (True, False):
        with pytest.raises(Tdmr1Error, match=r"no prompt set 'nosuch'|per_iteration is 5 but there are only 4 steps"):
            start_run("train", Flags(sets=[setting]), tmp_path / "run", dry_run=dry, quiet=True)
    config = resolve([{"rewards": [{"name": "object_count"}]}, parse_assignments([setting])])
    with pytest.raises(Tdmr1Error, match=r"no prompt set 'nosuch'|per_iteration is 5"):
        Run.create(config, tmp_path / "run")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(parse_assignments([setting])))
    assert main(["config", "validate", "mine.yaml"]) == 2
    assert "error: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
