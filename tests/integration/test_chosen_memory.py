"""A new run on a GPU chooses batch and memory settings; its config.yaml holds them and a resume repeats them.

The free memory of a GPU is simulated; the run itself is on the CPU.
"""

from __future__ import annotations

import pytest
import yaml
from support.errors import raises
from support.runs import Silent, small_config

from tdmr1_cli.run_summary import print_choices
from tdmr1_core.config_loading import with_former_defaults
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.planning import estimate
from tdmr1_core.runs import run as runs
from tdmr1_core.runs.checkpoints.run_config import load_run_config
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration

SHORT = ("iterations=1", "timesteps.per_iteration=1", "evaluation.images=1")
CHOSEN = ("gradient_checkpointing", "decoder", "trajectories")


def on_gpu(monkeypatch, free):
    monkeypatch.setattr(runs, "free_memory", lambda device: free)


def test_a_run_stores_what_it_chose_and_a_resume_repeats_it(tmp_path, monkeypatch, capsys):
    on_gpu(monkeypatch, 1.3e9)
    announced: list[str] = []
    run = Run.create(small_config(*SHORT), tmp_path / "run", announce=announced.append)
    assert announced[0] == "estimating memory and time …"
    assert run.choices is not None
    print_choices(run.choices)
    assert capsys.readouterr().err.count("\n") == 3
    memory = run.config.memory
    assert 4 <= run.config.batch.micro_batch <= 8
    assert (memory.gradient_checkpointing, memory.decoder, memory.trajectories) == (False, "none", "device")
    run.execute(Silent())
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["batch"]["micro_batch"] == run.config.batch.micro_batch
    assert {name: written["memory"][name] for name in CHOSEN} == {name: getattr(memory, name) for name in CHOSEN}
    monkeypatch.setattr(estimate.Planner, "plan", lambda *_: pytest.fail("a resume chooses"))
    resumed = Run.resume(tmp_path / "run", iterations=2)
    assert (resumed.config.batch, resumed.config.memory) == (run.config.batch, run.config.memory)
    assert resumed.choices is None
    resumed._release()


def test_a_small_card_makes_a_run_recompute(tmp_path, monkeypatch):
    on_gpu(monkeypatch, 1.107e9)
    announced: list[str] = []
    run = Run.create(small_config(*SHORT), tmp_path / "run", announce=announced.append)
    assert announced == ["estimating memory and time …", "estimating memory with recomputation …"]
    assert run.config.memory.gradient_checkpointing is True


def test_a_run_on_a_cpu_chooses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate.Planner, "plan", lambda *_: pytest.fail("a run on a CPU is planned"))
    config = small_config(*SHORT)
    run = Run.create(config, tmp_path / "run")
    assert run.choices is None
    assert (run.config.batch, run.config.memory) == (config.batch, config.memory)


def test_a_model_that_cannot_be_planned_keeps_its_settings(tmp_path, monkeypatch):
    on_gpu(monkeypatch, 1.3e9)

    def fail(*_):
        raise Tdmr1Error("this model cannot be planned", "", code="plan-unavailable")

    monkeypatch.setattr(estimate.Planner, "plan", fail)
    announced: list[str] = []
    run = Run.create(small_config(*SHORT), tmp_path / "run", announce=announced.append)
    assert run.config.batch.micro_batch == "auto"
    assert announced == ["batch and memory settings are not chosen: this model cannot be planned"]


def test_the_settings_of_former_runs_mean_what_they_meant(tmp_path):
    """Former runs name every setting, so none of them becomes `auto`; the micro-batch `auto` is all images."""
    former = {"gradient_checkpointing": False, "decoder": "none", "trajectories": "device"}
    config = small_config().model_dump(mode="json")
    config["memory"] |= former
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(with_former_defaults(config)))
    memory = load_run_config(tmp_path).memory
    assert {name: getattr(memory, name) for name in CHOSEN} == former
    assert not memory.recomputes
    assert memory.decodes_at_once


def test_a_word_that_is_not_a_choice_is_refused():
    with raises("setting-invalid", settings=["memory.gradient_checkpointing"]):
        small_config("memory.gradient_checkpointing=sometimes")
