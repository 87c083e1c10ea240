"""`tdmr1_core.train` and the run object that it returns, on the embedded model."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.command_line import run_tdmr1
from support.errors import raises, warns
from support.paths import ROOT
from support.runs import rows

import tdmr1_core
from tdmr1_core.runs.metrics_log import METRICS
from tdmr1_core.runs.observer import Observer
from tdmr1_rewards.calling import session

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::tdmr1_core.errors.RunWarning")]

SETTINGS = {
    "batch": {"groups": 2, "group_size": 4},
    "timesteps.per_iteration": 1,
    "evaluation.images": 4,
    "evaluation.every": 0,
    "saving.tensorboard": False,
    "saving.samples_every": 0,
}
PROMPTS = [
    {"prompt": "two red circles", "lightness": 1.0},
    {"prompt": "three blue squares", "lightness": 0.5},
    "one green circle",
]


def light(images: np.ndarray, prompts: list[str], metadata: list[dict]) -> list[float]:
    """The mean of an image, times a factor of its prompt."""
    factors = [entry.get("lightness", 0.0) for entry in metadata]
    return [float(image.mean()) / 255 * factor for image, factor in zip(images, factors, strict=True)]


light.__module__ = "__main__"  # as a function of a notebook


def train(folder, **arguments):
    given = {"reward": light, "prompts": PROMPTS, "settings": SETTINGS, "seed": 3, "progress": False}
    return tdmr1_core.train("tiny-tdm", output=folder, **{**given, **arguments})


def resume(folder, **arguments):
    return tdmr1_core.train(resume=folder, progress=False, **arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of three iterations. Tests do not change it."""
    folder = tmp_path_factory.mktemp("python") / "run"
    with warns("resume-inputs", rewards=["light"]):
        finished = train(folder, iterations=3)
    yield finished
    finished.close()


class Interrupting(Observer):
    """Sends a signal after an iteration; SIGINT is that of a terminal or a notebook."""

    def __init__(self, times: int = 1, number: int = signal.SIGINT, step: int = 2) -> None:
        self.times, self.number, self.step = times, number, step

    def iteration(self, report) -> None:
        if report.step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def test_a_run_knows_its_folder_settings_and_logs(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert (run.iterations, run.finished) == (3, True)
    assert run.config.rewards[0].source == session.source_of("light")
    assert [row["step"] for row in run.metrics] == [1, 2, 3]
    assert "light/mean" in run.evaluations[0]
    assert json.loads((run.folder / "prompts.json").read_text())[2] == "one green circle"
    assert "${run}/prompts.json" in (run.folder / "config.yaml").read_text()
    assert repr(run) == f"TrainedRun({str(run.folder)!r}: 3 iterations)"


def test_tables_are_data_frames_if_pandas_is_installed(run):
    pandas = pytest.importorskip("pandas")
    assert isinstance(run.metrics, pandas.DataFrame)
    assert list(run.metrics["step"]) == [1, 2, 3]


def test_samples_are_images_of_the_trained_model(run):
    first = run.sample("two red circles", images=2, seed=5)
    assert [(image.mode, image.size) for image in first] == [("RGB", (24, 24))] * 2
    before = run.sample("two red circles", images=2, seed=5, role="start")
    again = run.sample(["two red circles", "one green circle"], images=2, seed=5)
    assert len(again) == 4
    assert [image.tobytes() for image in again[:2]] == [image.tobytes() for image in first]
    assert [image.tobytes() for image in before] != [image.tobytes() for image in first]
    for wrong in ("", [], ["one", " "]):
        with raises("argument-invalid"):
            run.sample(wrong)
    for numbers in ({"images": 0}, {"steps": 0}, {"images": 1.5}):
        with raises("argument-invalid", **numbers):
            run.sample("two red circles", **numbers)
    with raises("argument-invalid", role="student"):
        run.sample("two red circles", role="student")


def test_an_evaluation_compares_the_trained_model_with_its_start(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    found = {row["role"]: row for row in run.evaluate(images=6, teacher=False)}
    assert list(found) == ["student", "trained", "gain"]
    assert {row["reward"] for row in found.values()} == {"light"}
    assert found["gain"]["mean"] == pytest.approx(found["trained"]["mean"] - found["student"]["mean"])
    assert found["gain"]["n"] == 6
    assert not session.is_provided("light")
    for numbers in ({"images": 0}, {"images": -5}, {"images_per_prompt": -2}):
        with raises("argument-invalid", **numbers):
            run.evaluate(**numbers)


def test_prompts_of_an_evaluation_may_be_a_path(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    file = tmp_path / "two.txt"
    file.write_text("two red circles\none blue square\n")
    found = run.evaluate(file, images=4, teacher=False)
    assert {(Path(row["prompts"]).name, row["n"]) for row in found} == {("two.txt", 4)}


def test_the_export_is_the_lora_of_diffusers(run, tmp_path):
    file = run.export(tmp_path / "lora")
    assert file == tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert file.stat().st_size > 1000
    with raises("file-exists"):
        run.export(tmp_path / "lora")


def unwrapped(done) -> str:
    return " ".join(done.stderr.split())


def test_the_command_line_names_the_way_to_resume(run):
    done = run_tdmr1("train", "--resume", run.folder, "--iterations", 4, code=2)
    assert "[reward-import]" in done.stderr
    assert f"tdmr1_core.train(resume='{run.folder}', reward=light)" in unwrapped(done)
    refused = run_tdmr1("evaluate", run.folder, "--images", 2, code=2)
    assert f"tdmr1_core.TrainedRun('{run.folder}', rewards={{'light': light}}).evaluate()" in unwrapped(refused)
    assert run_tdmr1("sample", run.folder, "--prompt", "one green circle", "--output", run.folder.parent / "images")


def test_a_run_is_interrupted_and_resumed_to_the_same_bits(run, tmp_path):
    with warns("interrupted", iterations=2):
        stopped = train(tmp_path / "run", iterations=3, progress=Interrupting())
    assert (stopped.iterations, stopped.finished) == (2, False)
    with raises("reward-import", rewards=["light"]):
        resume(stopped.folder)
    resumed = resume(stopped.folder, reward=light)
    assert resumed.finished
    assert rows(resumed.folder / METRICS) == rows(run.folder / METRICS)


def test_a_second_interrupt_raises_with_the_run_and_a_changed_function_is_a_warning(run, tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path / "run", iterations=3, progress=Interrupting(times=2))
    stopped = caught.value.run
    assert (stopped.folder, stopped.iterations) == (tmp_path / "run", 2)
    assert f"tdmr1_core.train(resume='{stopped.folder}', reward=light)" in caught.value.__notes__[-1]
    assert rows(stopped.folder / METRICS) == rows(run.folder / METRICS)[:2]
    with warns("resume-inputs", input="reward light"):
        resumed = resume(stopped.folder, reward=lambda images, prompts: [0.5] * len(images))
    assert rows(resumed.folder / METRICS)[:2] == rows(run.folder / METRICS)[:2]
    assert rows(resumed.folder / METRICS)[2]["reward/mean"] == 0.5


def test_sigterm_has_its_usual_effect_after_the_run_is_saved(tmp_path):
    saved = []
    former = signal.signal(signal.SIGTERM, lambda *_: saved.append(tdmr1_core.TrainedRun(tmp_path / "run").iterations))
    try:
        train(tmp_path / "run", iterations=3, progress=Interrupting(number=signal.SIGTERM, step=1))
    finally:
        signal.signal(signal.SIGTERM, former)
    assert saved == [1]


def test_a_thread_can_train(tmp_path):
    runs = []

    def target() -> None:
        runs.append(train(tmp_path / "run", iterations=1, reward="object_count", prompts="count"))

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert runs[0].finished


def test_the_example_of_the_docs_runs_and_shows_progress_on_stderr(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len([line for line in example.splitlines() if line]) <= 10
    assert "iterations=20" in example
    names = {"__name__": "__main__", "SETTINGS": SETTINGS}
    exec(example.replace("iterations=20", "iterations=1, settings=SETTINGS"), names)
    assert Image.open("circles.png").size == (24, 24)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("tiny-tdm-colorfulness-")
    out, error = capfd.readouterr()
    assert "step" in out
    assert "iteration 1/1: reward" in error
