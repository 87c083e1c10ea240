"""A run: its folder, a bit-identical resume, the same files twice, and an export that gives the same images."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from support.errors import raises, warns
from support.runs import Silent, files, rows, small_config

from tdmr1_core.models.loading import fetch_model
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.runs.checkpoints.checkpoint import LATEST, checkpoint_folders, latest_checkpoint
from tdmr1_core.runs.checkpoints.manifest import MANIFEST, describe
from tdmr1_core.runs.checkpoints.resume import RESUMES, load_run_config
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.output.export import export_lora
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    settings = ("saving.checkpoint_every=1", "saving.samples_every=2", "timesteps.per_iteration=1")
    config = small_config(*settings, "batch.group_size=2")
    result = Run.create(config, folder).execute(Silent())
    assert result.finished
    assert result.before_after == folder / "before_after.png"
    return folder


def test_the_folder_holds_all_documented_files(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["tdmr1"]["versions"]["torch"]
    assert config["batch"] == {
        "groups": 2,
        "group_size": 2,
        "prompts": "uniform",
        "teaching_floor": 0.1,
        "micro_batch": "auto",
    }
    metrics = rows(finished / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3]
    wanted = {"reward/mean", "reward/std", "reward/object_count/mean", "zero_std_ratio", "loss/fake", "loss/preference"}
    wanted |= {"loss/generator", "grad_norm/generator", "grad_norm/fake", "grad_norm/surrogate"}
    assert wanted <= metrics[0].keys()
    evaluations = rows(finished / "evaluations.jsonl")
    assert [(row["step"], row["prompts"]) for row in evaluations if "object_count/mean" in row] == [
        (0, "count"),
        (0, "count-held-out"),
        (3, "count"),
        (3, "count-held-out"),
    ]
    assert all(row["n"] >= 4 for row in evaluations)
    grids = ["step-000000", "step-000002", "step-000003"]
    with_signal = [row["step"] for row in rows(finished / "metrics.jsonl") if row["zero_std_ratio"] < 1]
    groups = [f"group-{step:06d}" for step in (2, 3) if step in with_signal]
    assert groups
    expected = [*(f"{name}.{kind}" for name in grids for kind in ("json", "png")), *(f"{name}.json" for name in groups)]
    expected += [f"{name}-{word}.png" for name in groups for word in ("best", "worst")]
    assert sorted(path.name for path in (finished / "samples").iterdir()) == sorted(expected)
    assert [path.name for path in checkpoint_folders(finished / "checkpoints")] == ["step-000002", "step-000003"]
    assert (finished / "checkpoints" / LATEST).read_text().strip() == "step-000003"


def test_the_same_run_twice_writes_the_same_files(finished, tmp_path):
    Run.create(load_run_config(finished), tmp_path / "again").execute(Silent())
    assert files(tmp_path / "again") == files(finished)


def test_a_stopped_run_ends_with_the_same_bits(finished, tmp_path):
    class StopAfterOne(Silent):
        def iteration(self, report):
            super().iteration(report)
            run._stop = True

    folder = tmp_path / "stopped"
    run = Run.create(load_run_config(finished), folder)
    result = run.execute(StopAfterOne())
    assert (result.finished, result.iterations) == (False, 1)
    resumed = Silent()
    assert Run.resume(folder).execute(resumed).finished
    assert [report.step for report in resumed.reports] == [2, 3]
    assert rows(folder / RESUMES) == [{"checkpoint": "step-000001", "changes": {}, "differences": []}]
    one, other = files(folder), files(finished)
    del one["samples/step-000001.png"], one["samples/step-000001.json"]
    assert one == other


def test_a_run_that_began_before_a_setting_existed_ends_with_the_same_bits(tmp_path):
    """The folder is made into one of a version without rollout.dpm_levels, whose dpm-solver++ used Euler's levels."""

    class StopAfterOne(Silent):
        def iteration(self, report):
            super().iteration(report)
            run._stop = True

    former = ("rollout.sampler=dpm-solver++", "rollout.dpm_levels=euler", "batch.group_size=2")
    config = small_config(*former, "iterations=2", "timesteps.per_iteration=1")
    Run.create(config, tmp_path / "whole").execute(Silent())
    folder = tmp_path / "stopped"
    run = Run.create(config, folder)
    assert run.execute(StopAfterOne()).iterations == 1
    path, checkpoint = folder / "config.yaml", folder / "checkpoints" / "step-000001"
    path.write_text(path.read_text().replace("  dpm_levels: euler\n", ""))
    contents = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.name != MANIFEST}
    settings = json.loads(contents["config.json"])
    assert settings["rollout"].pop("dpm_levels") == "euler"
    contents["config.json"] = json.dumps(settings).encode()
    (checkpoint / "config.json").write_bytes(contents["config.json"])
    (checkpoint / MANIFEST).write_bytes(describe(contents))
    assert Run.resume(folder).execute(Silent()).finished
    last = "checkpoints/step-000002"
    one, other = files(folder), files(tmp_path / "whole")
    for name in ("weights.safetensors", "optimizers.safetensors", "config.json"):
        assert one[f"{last}/{name}"] == other[f"{last}/{name}"]
    assert Run.resume(folder).config.rollout.dpm_levels == "euler", "now the checkpoint has the setting"


def test_lines_after_the_checkpoint_are_rewritten(finished, copied):
    (copied / "checkpoints" / LATEST).write_text("step-000002\n")
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    Run.resume(copied).execute(Silent())
    assert rows(copied / "metrics.jsonl") == rows(finished / "metrics.jsonl")


def test_a_used_folder_is_refused_and_untouched(finished):
    before = files(finished)
    with raises("run-folder-used", folder=str(finished)) as caught:
        Run.create(small_config(), finished)
    assert "--resume" in caught.value.hint
    assert files(finished) == before


def test_resume_needs_a_run(tmp_path):
    with raises("run-folder-missing", folder=str(tmp_path)):
        Run.resume(tmp_path)


def test_an_export_gives_the_same_images_up_to_rounding_and_keeps_alpha(finished, tmp_path):
    engine = load_trained(finished)
    exported = export_lora(engine, tmp_path / "lora")
    assert exported.largest_difference <= 1  # of 255; some CPUs round a pixel differently, as the export allows
    lora = fetch_model(replace(engine.entry, lora=str(tmp_path / "lora")), training=True).lora
    assert (lora.shape.rank, lora.shape.alpha) == (engine.roles.shape.rank, engine.roles.shape.alpha)
    weights = engine.roles.weights(GENERATOR_EMA)
    assert lora.weights.keys() == weights.keys()
    saved = load_file(latest_checkpoint(finished / "checkpoints") / "weights.safetensors")
    for name, value in lora.weights.items():
        assert value.equal(weights[name])
        assert value.equal(saved[f"{GENERATOR_EMA}/{name}"])
    with raises("file-exists"):
        export_lora(engine, tmp_path / "lora")


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Path:
    """A run that is evaluated after every iteration."""
    folder = tmp_path_factory.mktemp("runs") / "watched"
    settings = ("evaluation.every=1", "evaluation.images=4", "batch.group_size=2", "iterations=2")
    Run.create(small_config(*settings, "timesteps.per_iteration=1"), folder).execute(Silent())
    return folder


class StopWhileEvaluating(Silent):
    """Requests a stop during an evaluation, between its two prompt sets."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.run = at, None

    def evaluated(self, step, evaluation):
        if step == self.at:
            self.run._stop = True


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_interrupted_evaluation_is_repeated(watched, tmp_path, at):
    folder, observer = tmp_path / "stopped", StopWhileEvaluating(at)
    observer.run = Run.create(load_run_config(watched), folder)
    with warns("evaluation-cut-off", run=str(folder)) if at == 2 else nullcontext():
        observer.run.execute(observer)
    assert Run.resume(folder).execute(Silent()).finished
    for name in ("evaluations.jsonl", "guard.jsonl", "metrics.jsonl"):
        assert rows(folder / name) == rows(watched / name)


def test_a_stop_after_an_iteration_postpones_its_evaluation_to_the_resume(watched, tmp_path):
    class StopAfterOne(Silent):
        def iteration(self, report):
            run._stop = True

    folder = tmp_path / "stopped"
    run = Run.create(load_run_config(watched), folder)
    run.execute(StopAfterOne())
    for _ in range(2):  # the second time there is nothing to do
        assert Run.resume(folder).execute(Silent()).finished
        assert rows(folder / "evaluations.jsonl") == rows(watched / "evaluations.jsonl")
        assert rows(folder / "guard.jsonl") == rows(watched / "guard.jsonl")
