"""What a run stands on outside its folder may change under it: that is told, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.runs import Silent, small_config

from tdmr1_core import tiny
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.runs.checkpoints.fingerprints import read_header
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration

REWARD = """
from tdmr1_rewards import RewardBatch, RewardResult

def bright(batch: RewardBatch) -> RewardResult:
    "How bright the middle is."
    return RewardResult([float(image.convert("L").getpixel((12, 12))) for image in batch.images])
"""
PROMPTS = "one red circle\ntwo blue squares\nthree green circles\n"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run of one iteration of two, with prompts, a reward and a LoRA in files."""
    home = tmp_path_factory.mktemp("foundations")
    (home / "train.txt").write_text(PROMPTS)
    (home / "other.txt").write_text(PROMPTS)
    (home / "bright.py").write_text(REWARD)
    shutil.copytree(Path(tiny.__file__).parent / "student", home / "lora")
    settings = (f"prompts.train={home}/train.txt", f"prompts.evaluate={home}/other.txt", "evaluation.images=3")
    settings += (f"model.lora={home}/lora/pytorch_lora_weights.safetensors", "evaluation.rewards=[]")
    rewards = [{"name": "bright", "source": f"{home}/bright.py:bright"}]
    observer = Silent()
    run = Run.create(small_config(*settings, "iterations=2", rewards=rewards), home / "run")
    observer.iteration = lambda report: setattr(run, "_stop", True)
    assert not run.execute(observer).finished
    return home


@pytest.fixture
def home(stopped):
    """The same files, which are put back after a test."""
    kept = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    yield stopped
    shutil.rmtree(stopped)
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def resumes(home: Path) -> list[dict]:
    return [json.loads(line) for line in (home / "run" / "resumes.jsonl").read_text().splitlines()]


def test_nothing_is_said_where_nothing_has_changed(home, recwarn):
    assert Run.resume(home / "run").execute(Silent()).finished
    assert not [warning for warning in recwarn if issubclass(warning.category, RunWarning)]
    assert resumes(home) == [{"checkpoint": "step-000001", "changes": {}, "differences": []}]
    assert set(read_header(home / "run").prompts) == {"the training", "evaluations"}


def test_a_run_goes_on_elsewhere_with_the_same_contents(home, tmp_path, recwarn):
    moved = Path(shutil.move(home, tmp_path / "moved"))
    config = moved / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(home), str(moved)))
    assert Run.resume(moved / "run").execute(Silent()).finished
    shutil.copytree(moved, home)
    assert not [warning for warning in recwarn if issubclass(warning.category, RunWarning)]
    changes = resumes(moved)[0]["changes"]
    assert set(changes) == {"model.lora", "prompts.train", "prompts.evaluate", "rewards.0.source"}
    looks = [json.loads(line) for line in (moved / "run" / "guard.jsonl").read_text().splitlines()]
    assert len({look["subject"] for look in looks}) == 1, "the guard compares with what it saw before"


def test_other_prompts_of_the_training_are_refused(home):
    (home / "train.txt").write_text(PROMPTS.replace("two", "four"))
    with pytest.raises(Tdmr1Error, match="prompts of the training are not those that the run began with"):
        Run.resume(home / "run").execute(Silent())
    assert not (home / "run" / "resumes.jsonl").exists()


def test_other_prompts_of_evaluations_are_told(home):
    (home / "other.txt").write_text(PROMPTS.replace("two", "four"))
    with pytest.warns(RunWarning, match="prompts of evaluations are not those"):
        assert Run.resume(home / "run").execute(Silent()).finished
    assert "evaluations" in resumes(home)[0]["differences"][0]
    looks = [json.loads(line) for line in (home / "run" / "guard.jsonl").read_text().splitlines()]
    assert len({look["subject"] for look in looks}) == 2, "the guard compares pictures of the same prompts alone"


def test_a_mended_reward_may_go_on_and_is_told(home):
    (home / "bright.py").write_text(REWARD.replace("12", "11"))
    with pytest.warns(RunWarning, match=r"reward bright was bright of sha256 \w{64} when the run began, and is bright"):
        assert Run.resume(home / "run").execute(Silent()).finished
    assert resumes(home)[0]["differences"][0].startswith("reward bright was")


def test_another_lora_is_refused_by_whatever_reads_the_run(home):
    lora = home / "lora" / "pytorch_lora_weights.safetensors"
    lora.write_bytes(lora.read_bytes().replace(b'"format":"pt"', b'"format":"xx"'))
    for act in (lambda: Run.resume(home / "run").execute(Silent()), lambda: load_trained(home / "run")):
        with pytest.raises(Tdmr1Error, match="is not the LoRA that the run began with"):
            act()


def test_a_run_whose_header_is_lost_is_told_that_nothing_is_compared(home):
    config = home / "run" / "config.yaml"
    text = config.read_text()
    config.write_text(text[text.index("kind: train") :])
    with pytest.warns(RunWarning, match="does not say which prompts and rewards the run began with"):
        assert Run.resume(home / "run").execute(Silent()).finished


@pytest.mark.parametrize("section", ["guard", "saving"])
def test_settings_that_were_cut_off_are_missed(home, section):
    config = home / "run" / "config.yaml"
    text = config.read_text()
    config.write_text(text[: text.index(f"\n{section}:") + 1])
    with pytest.raises(Tdmr1Error, match=f"config.yaml says nothing of .*{section}.*: was it cut off") as caught:
        Run.resume(home / "run")
    assert "config.json has all of it" in caught.value.hint


@pytest.mark.parametrize(
    ("header", "place"),
    [("tdmr1: 5", "tdmr1"), ("tdmr1: {versions: abc}", "tdmr1.versions"), ("tdmr1: {lora: 3}", "tdmr1.lora")],
)
def test_a_header_that_no_run_has_written_is_refused(home, header, place):
    config = home / "run" / "config.yaml"
    text = config.read_text()
    config.write_text(f"{header}\n{text[text.index('kind: train') :]}")
    with pytest.raises(Tdmr1Error, match=rf"{place} in {config} is not what a run writes there"):
        Run.resume(home / "run").execute(Silent())
