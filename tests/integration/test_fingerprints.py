"""External inputs of a run that change before a resume: prompts, rewards, base model and LoRA."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from support.errors import MISSING, raises, warns
from support.runs import Silent, small_config

from tdmr1_core import tiny
from tdmr1_core.errors import RunWarning
from tdmr1_core.runs.checkpoints.fingerprints import read_header
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration

REWARD = """
from tdmr1_rewards import RewardBatch, RewardResult

def bright(batch: RewardBatch) -> RewardResult:
    "The brightness of the center."
    return RewardResult([float(image.convert("L").getpixel((12, 12))) for image in batch.images])
"""
PROMPTS = "one red circle\ntwo blue squares\nthree green circles\n"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder of a run, stopped after one of two iterations, and of its prompts, reward and LoRA."""
    folder = tmp_path_factory.mktemp("fingerprints")
    (folder / "train.txt").write_text(PROMPTS)
    (folder / "other.txt").write_text(PROMPTS)
    (folder / "bright.py").write_text(REWARD)
    shutil.copytree(Path(tiny.__file__).parent / "student", folder / "lora")
    settings = (f"prompts.train={folder}/train.txt", f"prompts.evaluate={folder}/other.txt", "evaluation.images=3")
    settings += (
        f"model.lora={folder}/lora/pytorch_lora_weights.safetensors",
        "evaluation.rewards=[]",
        "timesteps.per_iteration=1",
    )
    rewards = [{"name": "bright", "source": f"{folder}/bright.py:bright"}]
    observer = Silent()
    run = Run.create(small_config(*settings, "iterations=2", rewards=rewards), folder / "run")
    observer.iteration = lambda report: setattr(run, "_stop", True)
    assert not run.execute(observer).finished
    return folder


@pytest.fixture
def folder(stopped):
    """The same files, which are restored after each test."""
    kept = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    yield stopped
    shutil.rmtree(stopped)
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def resumes(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "resumes.jsonl").read_text().splitlines()]


def test_no_warning_without_changes(folder, recwarn):
    assert Run.resume(folder / "run").execute(Silent()).finished
    assert not [warning for warning in recwarn if issubclass(warning.category, RunWarning)]
    assert resumes(folder) == [{"checkpoint": "step-000001", "changes": {}, "differences": []}]
    assert set(read_header(folder / "run").prompts) == {"the training", "evaluations"}


def test_a_moved_run_continues_with_the_same_contents(folder, tmp_path, recwarn):
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    config = moved / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(folder), str(moved)))
    assert Run.resume(moved / "run").execute(Silent()).finished
    shutil.copytree(moved, folder)
    assert not [warning for warning in recwarn if issubclass(warning.category, RunWarning)]
    changes = resumes(moved)[0]["changes"]
    assert set(changes) == {"model.lora", "prompts.train", "prompts.evaluate", "rewards.0.source"}
    readings = [json.loads(line) for line in (moved / "run" / "guard.jsonl").read_text().splitlines()]
    assert len({reading["subject"] for reading in readings}) == 1, "the guard compares with the earlier readings"


def test_other_training_prompts_are_refused(folder):
    (folder / "train.txt").write_text(PROMPTS.replace("two", "four"))
    with raises("resume-inputs", input="training prompts"):
        Run.resume(folder / "run").execute(Silent())
    assert not (folder / "run" / "resumes.jsonl").exists()


def test_other_evaluation_prompts_cause_a_warning(folder):
    (folder / "other.txt").write_text(PROMPTS.replace("two", "four"))
    with warns("resume-inputs", input="prompts of evaluations"):
        assert Run.resume(folder / "run").execute(Silent()).finished
    assert "evaluations" in resumes(folder)[0]["differences"][0]
    readings = [json.loads(line) for line in (folder / "run" / "guard.jsonl").read_text().splitlines()]
    assert len({reading["subject"] for reading in readings}) == 2, "the guard compares only images of the same prompts"


def test_a_changed_reward_may_continue_with_a_warning(folder):
    (folder / "bright.py").write_text(REWARD.replace("12", "11"))
    with warns("resume-inputs", input="reward bright") as warned:
        assert Run.resume(folder / "run").execute(Silent()).finished
    values = next(warning.message.values for warning in warned)
    assert re.fullmatch(r"bright of sha256 \w{64}", values["before"])
    assert values["now"] != values["before"]
    assert resumes(folder)[0]["differences"][0].startswith("reward bright has changed")


def test_another_lora_is_refused_by_every_reader(folder):
    lora = folder / "lora" / "pytorch_lora_weights.safetensors"
    lora.write_bytes(lora.read_bytes().replace(b'"format":"pt"', b'"format":"xx"'))
    for act in (lambda: Run.resume(folder / "run").execute(Silent()), lambda: load_trained(folder / "run")):
        with raises("resume-inputs", input="lora", path=str(lora)):
            act()


def test_without_a_header_a_warning_reports_that_nothing_is_compared(folder):
    config = folder / "run" / "config.yaml"
    text = config.read_text()
    config.write_text(text[text.index("kind: train") :])
    with warns("resume-inputs", input=MISSING):
        assert Run.resume(folder / "run").execute(Silent()).finished


@pytest.mark.parametrize("section", ["guard", "saving"])
def test_missing_settings_are_named(folder, section):
    config = folder / "run" / "config.yaml"
    text = config.read_text()
    config.write_text(text[: text.index(f"\n{section}:") + 1])
    with raises("config-incomplete", path=str(config)) as caught:
        Run.resume(folder / "run")
    assert section in caught.value.values["missing"]
    assert "config.json" in caught.value.hint


@pytest.mark.parametrize(
    ("header", "entry"),
    [("tdmr1: 5", "tdmr1"), ("tdmr1: {versions: abc}", "tdmr1.versions"), ("tdmr1: {lora: 3}", "tdmr1.lora")],
)
def test_a_header_that_no_run_wrote_is_refused(folder, header, entry):
    config = folder / "run" / "config.yaml"
    text = config.read_text()
    config.write_text(f"{header}\n{text[text.index('kind: train') :]}")
    with raises("config-incomplete", path=str(config), entry=entry):
        Run.resume(folder / "run").execute(Silent())
