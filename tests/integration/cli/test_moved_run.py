"""A run folder is moved, and everything outside it that the run began with is gone or in another place."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from support.command_line import changed, run_tdmr1
from support.paths import ROOT
from support.runs import files

pytestmark = pytest.mark.integration

TINY = ROOT / "tdmr1_core" / "tiny"
LORA = "pytorch_lora_weights.safetensors"
REWARD = """
from tdmr1_rewards import RewardBatch, RewardResult

def {name}(batch: RewardBatch) -> RewardResult:
    "The brightness of one pixel."
    return RewardResult([float(image.convert("L").getpixel((12, 12))) for image in batch.images])
"""
SETTINGS = ("batch.groups=2", "batch.group_size=4", "timesteps.per_iteration=1", "evaluation.images=3")
SETTINGS += ("saving.tensorboard=false", "saving.samples_every=0", "evaluation.rewards=[]", "guard.enabled=false")
NEEDED = ["model.path", "model.lora", "rewards.0.source", "rewards.1.source", "rewards.1.python"]
NEEDED += ["prompts.train", "prompts.evaluate"]


def moved_paths(place: Path, *names: str) -> list[str]:
    """The options that name the places of the inputs in a folder; all of them, or those of these settings."""
    paths = {
        "model.path": place / "base",
        "model.lora": place / LORA,
        "rewards.0.source": f"{place}/bright.py:bright",
        "rewards.1.source": f"{place}/other.py:other",
        "rewards.1.python": place / "python",
        "prompts.train": place / "train.txt",
        "prompts.evaluate": place / "test.txt",
    }
    return [part for name in names or paths for part in ("--set", f"{name}={paths[name]}")]


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A run of one iteration in a moved folder, the folder of its moved inputs, and the same run resumed unmoved."""
    root = tmp_path_factory.mktemp("moved")
    inputs, run = root / "first", root / "first" / "run"
    shutil.copytree(TINY / "pipeline", inputs / "base")
    shutil.copy(TINY / "student" / LORA, inputs / LORA)
    for name in ("bright", "other"):
        (inputs / f"{name}.py").write_text(REWARD.format(name=name))
    (inputs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (inputs / "python").chmod(0o755)
    (inputs / "train.txt").write_text("one red circle\ntwo blue squares\nthree green circles\n")
    (inputs / "test.txt").write_text("two red circles\none blue square\n")
    start = changed(SETTINGS, "rewards.1.python=python", "memory.prompt_cache=run/cache")
    start += ["--model-path", "base", "--lora", LORA, "--prompts", "train.txt", "--iterations", 1, "--output", "run"]
    run_tdmr1("train", "--reward", "bright.py:bright", "--reward", "other.py:other:0.5", *start, "--quiet", cwd=inputs)
    kept = shutil.copytree(run, root / "kept")
    run_tdmr1("train", "--resume", run, "--iterations", 2, "--quiet")
    shutil.move(run, root / "resumed")
    shutil.move(inputs, root / "second place")
    return Path(kept), root / "second place", root / "resumed"


@pytest.fixture
def run(stages, tmp_path) -> Path:
    """A copy of the moved run, in a folder with a blank and a letter that is not ASCII."""
    return Path(shutil.copytree(stages[0], tmp_path / "rün 1"))


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run by relative path, without encoded prompts."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith("cache/")}


def test_results_need_only_the_run_and_the_base_model(run, stages, tmp_path):
    before = contents(run)
    link = tmp_path / "link"
    link.symlink_to(run)
    place = ["--model-path", stages[1] / "base"]
    one = ["--prompt", "two red circles", "--images", 1]
    run_tdmr1("sample", link, *one, "--output", tmp_path / "images", *place)
    run_tdmr1(
        "sample", run, *one, "--output", tmp_path / "start", *place, "--lora", stages[1] / LORA, "--role", "start"
    )
    run_tdmr1("export", run, "--output", tmp_path / "lora", *place)
    card = (tmp_path / "lora" / "README.md").read_text()
    assert f"from the LoRA {LORA}" in card
    run_tdmr1("report", link, "--output", tmp_path / "report.html")
    assert contents(run) == before
    assert json.loads(run_tdmr1("report", run, "--json").stdout)["evaluations"][0]["prompts"] == "train.txt"


def test_a_moved_base_model_is_named(run, tmp_path):
    done = run_tdmr1("sample", run, "--prompt", "x", "--output", tmp_path / "images", "--json", code=2)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "file-missing"
    assert [each["setting"] for each in error["values"]["missing"]] == ["model.path"]
    assert "--set model.path=" in error["hint"]
    assert "loading" not in done.stderr


@pytest.mark.parametrize("command", [["evaluate"], ["train", "--resume"]], ids=["evaluate", "resume"])
def test_everything_that_is_missing_is_named_at_once(run, command):
    before = contents(run)
    done = run_tdmr1(*command, run, code=2)
    assert [name for name in NEEDED if f"({name})" not in done.stderr or f"{name}=NEW" not in done.stderr] == []
    assert "loading" not in done.stderr
    assert contents(run) == before


def test_another_base_model_is_refused(run, stages, tmp_path):
    """Its configs and the sizes of its weights are the same."""
    other = Path(shutil.copytree(stages[1] / "base", tmp_path / "base"))
    weights = next((other / "transformer").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    sample = ["sample", run, "--prompt", "x", "--output", tmp_path / "images", "--model-path", other, "--json"]
    assert json.loads(run_tdmr1(*sample, code=2).stdout)["error"]["code"] == "resume-inputs"
    settings = [*moved_paths(stages[1], *NEEDED[1:]), "--set", f"model.path={other}"]
    assert "[resume-inputs]" in run_tdmr1("train", "--resume", run, *settings, "--quiet", code=2).stderr


def test_a_moved_run_evaluates_and_resumes_to_the_same_bits(run, stages):
    _, place, unmoved = stages
    evaluated = run_tdmr1("evaluate", run, "--images", 2, "--teacher-steps", 1, *moved_paths(place), "--json")
    names = [each["prompts"] for each in json.loads(evaluated.stdout)["prompt_sets"]]
    assert names == [str(place / "train.txt"), str(place / "test.txt")]
    done = run_tdmr1("train", "--resume", run, "--iterations", 2, *moved_paths(place), "--quiet")
    assert "warning: " not in done.stderr
    assert "train.txt" in done.stdout
    assert "–" not in done.stdout, "the last images are compared with the first ones"
    expected, found = files(unmoved), files(run)
    named = ("config.yaml", "config.json", "manifest.json", "state.json")  # these have the paths or their hash
    same = [name for name in expected if Path(name).name not in named]
    assert [name for name in same if found.get(name) != expected[name]] == []
    old = str(place.parent / "first")
    assert old not in (run / "config.yaml").read_text().partition("\nkind:")[2]
    assert "prompt_cache: ${run}/cache" in (run / "config.yaml").read_text()
    again = run_tdmr1("train", "--resume", run, "--quiet")  # without the options: config.yaml has the new places
    assert " was " not in again.stderr
    assert not Path(old).exists(), "nothing is written to the original folder"
