"""Runs with teaching prompts: two processes draw as one, and a resume or an error changes nothing."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from support.errors import raises
from support.runs import Silent, files, rows, small_config, timeless
from support.warm_processes import warm_processes  # noqa: F401

from tdmr1_cli.multiprocess import launch
from tdmr1_core.algorithm.advantages import group_spreads
from tdmr1_core.distributed import ALONE, Processes, join_processes
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.runs.checkpoints.checkpoint import LATEST
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration

TEACHING = ("batch.prompts=teaching", "timesteps.per_iteration=1", "guard.enabled=false")


@pytest.fixture
def prompts(tmp_path) -> str:
    """The setting of a file with four training prompts, so that two groups an iteration reach all of them soon."""
    captions = ("two red circles", "three blue squares", "one red square", "four blue circles")
    entries = [
        {"prompt": text, "include": [{"class": text.split()[2].rstrip("s"), "count": number, "color": text.split()[1]}]}
        for text, number in zip(captions, (2, 3, 1, 4), strict=True)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return f"prompts.train={path}"


def iterate(config, processes: Processes = ALONE) -> tuple[Engine, list[dict[str, float]], list[list[str]]]:
    """The engine after its iterations, their metrics without times, and the texts that this process drew."""
    engine = Engine.from_config(config, processes=processes)
    metrics, texts = [], []
    for _ in range(config.iterations):
        texts.append([prompt.text for prompt in engine.next_groups().prompts])
        metrics.append(timeless(engine.iteration().metrics))
    engine.close()
    return engine, metrics, texts


def iterate_as_one_of_several(config, folder: Path) -> None:
    """Write what this process drew, and its state."""
    processes = join_processes("cpu")
    engine, metrics, texts = iterate(config, processes)
    document = {"metrics": metrics, "texts": texts, "state": engine.counters()["teaching"]}
    (folder / f"{processes.rank}.json").write_text(json.dumps(document))
    processes.leave()


def test_two_processes_draw_as_one(tmp_path, prompts):
    config = small_config(*TEACHING, prompts, "model.precision=fp64")
    engine, metrics, texts = iterate(config)
    launch(2, partial(iterate_as_one_of_several, config, tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert [one + other for one, other in zip(first["texts"], second["texts"], strict=True)] == texts
    assert first["state"] == second["state"] == pytest.approx(engine.counters()["teaching"], abs=1e-12)
    assert len(first["state"]) > 2, "spreads of both processes"
    for one, other, alone in zip(first["metrics"], second["metrics"], metrics, strict=True):
        assert one == other
        assert one == pytest.approx(alone, abs=1e-9)


def test_the_estimates_are_those_of_the_scores(prompts):
    """A naive record of what was drawn and scored gives the state of the engine."""
    config = small_config(*TEACHING, prompts, "batch.groups=3")
    engine = Engine.from_config(config)
    expected: dict[str, float] = {}
    for number in range(3):
        trajectory = engine.rollout(engine.next_groups())
        scores = engine.score(trajectory)
        again = [prompt.text for prompt in engine.next_groups().prompts]
        assert again == [prompt.text for prompt in trajectory.groups.prompts], "until the iteration is complete"
        engine.iteration_index += 1  # as a loop of one's own does
        spreads = group_spreads(scores.total, scores.valid, 4).tolist()
        for prompt, spread in zip(trajectory.groups.prompts, spreads, strict=True):
            expected[prompt.text] = (expected[prompt.text] + spread) / 2 if prompt.text in expected else spread
        state = engine.counters()["teaching"]
        assert {engine.prompts[int(i)].text: value for i, value in state.items()} == pytest.approx(expected)
        assert len(set(again)) == 3, number
    assert any(expected.values())
    engine.close()


SAVING = ("saving.checkpoint_every=1", "saving.keep=9", "iterations=4")


@pytest.fixture
def whole(tmp_path, prompts) -> Path:
    """A finished run of four iterations with all checkpoints."""
    Run.create(small_config(*TEACHING, *SAVING, prompts), tmp_path / "whole").execute(Silent())
    return tmp_path / "whole"


def test_a_resume_ends_with_the_same_bits(whole, tmp_path):
    shorter = tmp_path / "shorter"
    shutil.copytree(whole, shorter, ignore=shutil.ignore_patterns("step-00000[2-9]", "before_after.png"))
    (shorter / "checkpoints" / LATEST).write_text("step-000001\n")
    Run.resume(shorter).execute(Silent())
    expected = files(whole)
    assert files(shorter) == expected
    states = [json.loads(path.read_text()) for path in sorted(whole.glob("checkpoints/step-*/state.json"))]
    assert len(states) == 4
    assert states[0]["counters"]["teaching"] != states[3]["counters"]["teaching"]
    assert {"teaching/effective_prompts", "teaching/tried"} <= rows(whole / "metrics.jsonl")[0].keys()


def test_an_iteration_that_fails_after_scoring_is_repeated_with_the_same_bits(whole, tmp_path, prompts, monkeypatch):
    """The checkpoint that is saved after the error has no spreads of the iteration that failed."""
    run = Run.create(small_config(*TEACHING, *SAVING, prompts, "saving.checkpoint_every=9"), tmp_path / "failed")
    advantages = Engine.advantages

    def failing(engine, scores):
        if engine.iteration_index == 2:
            raise Tdmr1Error("a failure", code="reward-failed")
        return advantages(engine, scores)

    monkeypatch.setattr(Engine, "advantages", failing)
    with raises("reward-failed"):
        run.execute(Silent())
    monkeypatch.undo()
    place = Path("checkpoints", "step-000002", "state.json")
    found, expected = (json.loads((folder / place).read_text()) for folder in (tmp_path / "failed", whole))
    assert found["counters"] == expected["counters"]
    Run.resume(tmp_path / "failed").execute(Silent())
    assert rows(tmp_path / "failed" / "metrics.jsonl") == rows(whole / "metrics.jsonl")


def test_how_prompts_are_drawn_cannot_change_in_a_run(whole):
    with raises("resume-settings"):
        Run.resume(whole, changes={"batch": {"prompts": "uniform"}})


def test_a_distillation_refuses_teaching_prompts():
    with raises("setting-invalid") as caught:
        small_config("batch.prompts=teaching", preset="distill-tiny")
    assert "a distillation has no rewards" in str(caught.value)


def test_all_training_prompts_are_encoded_ahead(prompts):
    """The most likely ones come first: those of the next iteration."""
    engine = Engine.from_config(small_config(*TEACHING, prompts, "iterations=1"))
    engine.encode_ahead([engine.prompts[0]])
    found = list(engine._encoder.upcoming())
    assert found[:2] == [prompt.text for prompt in engine.next_groups().prompts]
    assert set(found) == {prompt.text for prompt in engine.prompts}
    engine.close()
