"""`tdmr1_core.train` resolves its arguments as `tdmr1 train` resolves its options."""

from __future__ import annotations

import pytest
from support.errors import raises, warns

import tdmr1_core
from tdmr1_core.config_loading import dump
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.layers import Flags, resolve_settings
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.unit


class Reached(Exception):
    """The run would be created."""


@pytest.fixture
def created(monkeypatch):
    """What `Run.create` gets; then the training ends."""
    calls = []

    def create(resolved, folder, **options):
        calls.append((resolved, folder, options))
        raise Reached

    monkeypatch.setattr(Run, "create", create)
    return calls


def test_arguments_have_the_effect_of_options(created, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("batch: {groups: 3}\nrewards: [{name: object_count, options: {score: exact}}]\n")
    with pytest.raises(Reached):
        tdmr1_core.train(
            "tiny-tdm",
            [("object_count", 0.5), "jpeg_size:-0.1"],
            5,
            prompts="pairs",
            evaluation_prompts="count-held-out",
            preset="none",
            config=file,
            seed=7,
            settings={"generator.learning_rate": 1e-4, "surrogate": {"beta_dpo": 300.0}, "batch.group_size": 4},
            output=tmp_path / "run",
        )
    ((resolved, folder, _),) = created
    sets = ("generator.learning_rate=1e-4", "surrogate.beta_dpo=300.0", "batch.group_size=4")
    sets += ("prompts.evaluate=count-held-out",)
    rewards = ("object_count:0.5", "jpeg_size:-0.1")
    typed = Flags(file, "tiny-tdm", rewards, "none", "pairs", 5, 7, sets)
    assert dump(resolved.config) == dump(resolve_settings(typed, "train", discover()).config)
    assert folder == tmp_path / "run"


def test_listed_prompts_become_files_of_the_run_folder(created, tmp_path):
    listed = [{"prompt": "two red circles", "count": 2, "shape": "circle"}]
    with pytest.raises(Reached):
        tdmr1_core.train(prompts=listed, evaluation_prompts=["one circle"], output=tmp_path / "run", iterations=1)
    ((resolved, folder, options),) = created
    assert resolved.config.prompts.train == str(folder / "prompts.json")
    assert resolved.config.prompts.evaluate == str(folder / "evaluation_prompts.json")
    assert [prompt.text for prompt in resolved.prompts.prompts] == ["two red circles"]
    assert [prompt.text for prompt in resolved.evaluation_prompts[1].prompts] == ["one circle"]
    assert set(options["files"]) == {"prompts.json", "evaluation_prompts.json"}
    assert not folder.exists()


def test_the_default_folder_names_model_and_rewards(created, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Reached):
        tdmr1_core.train(reward=[lambda images, prompts: [0.0], "object_count"])
    (_, folder, _) = created[0]
    assert folder.parent == tmp_path / "runs"
    assert folder.name.startswith("tiny-tdm-function+object_count-")


def test_mistakes_are_errors_of_tdmr1(tmp_path, monkeypatch):
    with raises("setting-unknown"):
        tdmr1_core.train(settings={"generator.learning_rat": 1e-4}, output=tmp_path / "run")
    with raises("assignment-invalid"):
        tdmr1_core.train(settings={"generator..learning_rate": 1e-4}, output=tmp_path / "run")
    with raises("reward-unknown"):
        tdmr1_core.train(reward="object_cuont", output=tmp_path / "run")
    with raises("reward-signature"):
        tdmr1_core.train(reward=lambda one, two, three: 0.0, output=tmp_path / "run")
    with raises("option-conflict", arguments=["model", "seed"]):
        tdmr1_core.train("tiny-tdm", resume=tmp_path, seed=1)
    with raises("run-folder-missing"):
        tdmr1_core.train(resume=tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with raises("processes-count", processes=2):
        tdmr1_core.train(output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prompt_without_metadata_is_a_warning_of_python(created, tmp_path):
    with pytest.raises(Reached), warns("prompts-doubtful"):
        tdmr1_core.train(prompts=["one circle", "one circle"], reward=lambda images, prompts: [0.0])
