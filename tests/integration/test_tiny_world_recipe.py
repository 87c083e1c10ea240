"""The scripts that made the packaged models run: a few steps of each, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from support.command_line import run_script, run_tdmr1
from support.paths import ROOT
from transformers import CLIPTokenizer

from tdmr1_core.tiny.world import vocabulary

pytestmark = pytest.mark.integration

RECIPE = ROOT / "examples" / "tiny_world"
TRAINED = ROOT / "tdmr1_core" / "tiny" / "pipeline"
SETTINGS = ("batch.groups=2", "batch.group_size=2", "saving.samples_every=0", "saving.tensorboard=false")
SMALL = [part for setting in SETTINGS for part in ("--set", setting)]


def run(*command: str) -> str:
    return run_script(*command).stdout


def make_teacher(folder: Path, world: str) -> Path:
    """Make a base and its teacher. Returns the pipeline directory of the teacher."""
    run(str(RECIPE / "base.py"), "--world", world, "--output", str(folder / "base"), "--steps", "2", "--images", "300")
    return pretrain(world, folder / "base", folder / "teacher")


def pretrain(world: str, base: Path, teacher: Path) -> Path:
    """Train a teacher for a few steps, stopped and resumed. Returns its pipeline directory."""
    command = [str(RECIPE / "pretrain.py"), "--world", world, "--base", str(base), "--output", str(teacher)]
    command += ["--images", "200", "--batch", "8"]
    run(*command, "--minutes", "0.02")
    first = json.loads((teacher / "progress.json").read_text())
    assert first["step"] >= 1
    assert f"continuing at step {first['step']}" in run(*command, "--minutes", "0.06")
    assert json.loads((teacher / "progress.json").read_text())["step"] > first["step"]
    return teacher / "pipeline"


def make_student(folder: Path, model: str, teacher: Path) -> Path:
    """Distill a student for one iteration. Returns the folder of its LoRA."""
    student = folder / "student"
    distil = ["distill", "--model", model, "--model-path", str(teacher)]
    run_tdmr1(*distil, "--iterations", "1", "--output", str(student), "--set", "timesteps.per_iteration=1", *SMALL)
    assert (student / "export" / "pytorch_lora_weights.safetensors").stat().st_size > 1e6
    return student / "export"


def test_base_teacher_and_student_are_made(tmp_path):
    teacher = make_teacher(tmp_path, "shapes")
    tokenizer = CLIPTokenizer.from_pretrained(teacher / "tokenizer")
    assert {word: tokenizer.tokenize(word) for word in vocabulary()} == {w: [f"{w}</w>"] for w in vocabulary()}
    make_student(tmp_path, "tiny-tdm", teacher)


@pytest.mark.long
def test_a_words_model_is_made_and_trained_with_ocr_match(tmp_path):
    teacher = make_teacher(tmp_path, "words")
    tokenizer = CLIPTokenizer.from_pretrained(teacher / "tokenizer")
    signs = tokenizer.tokenize('a sign "NET"')
    assert signs == ["a</w>", "sign</w>", '"</w>', "n", "e", "t</w>", '"</w>']
    assert len(tokenizer('a sign "NET"').input_ids) <= tokenizer.model_max_length
    image = StableDiffusion3Pipeline.from_pretrained(teacher, text_encoder_3=None, tokenizer_3=None)(
        'a sign "NET"', height=16, width=36, num_inference_steps=1, max_sequence_length=0
    ).images[0]
    assert image.size == (36, 16)
    student = make_student(tmp_path, "tiny-words-tdm", teacher)
    (tmp_path / "words.txt").write_text('a sign "NET"\na sign "TAX"\n')
    train = ["train", "--model", "tiny-words-tdm", "--reward", "ocr_match", "--iterations", "1"]
    train += ["--model-path", str(teacher), "--lora", str(student), "--prompts", str(tmp_path / "words.txt")]
    done = run_tdmr1(*train, "--output", str(tmp_path / "run"), "--set", "evaluation.images=2", *SMALL, code=None)
    # With an untrained network, all images of the only iteration can have the same reward.
    assert done.returncode == 0 or "[nothing-learned]" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [row["n"] for row in rows if "exact/mean" in row] == [2, 2]
    assert "reward/ocr_match/mean" in json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.long
def test_the_pairs_model_starts_from_the_packaged_model(tmp_path):
    before = load_file(TRAINED / "transformer" / "diffusion_pytorch_model.safetensors")
    teacher = pretrain("pairs", TRAINED, tmp_path / "teacher")
    after = load_file(teacher / "transformer" / "diffusion_pytorch_model.safetensors")
    moved = [(after[name] - weight).norm() / (weight.norm() + 1e-6) for name, weight in before.items()]
    assert 0 < max(moved) < 0.5
    make_student(tmp_path, "tiny-pairs-tdm", teacher)
