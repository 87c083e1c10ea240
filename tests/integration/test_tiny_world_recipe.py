"""What made the packaged model still runs: a handful of steps of each part, stopped and continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import StableDiffusion3Pipeline
from transformers import CLIPTokenizer

from tdmr1_core.tiny.world import vocabulary

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "tiny_world"


def run(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_teacher(folder: Path, world: str) -> Path:
    """A base and a teacher of a few steps, stopped and continued; the answer is the teacher's pipeline directory."""
    base, teacher = folder / "base", folder / "teacher"
    run(str(RECIPE / "base.py"), "--world", world, "--output", str(base), "--steps", "2", "--images", "300")
    pretrain = [str(RECIPE / "pretrain.py"), "--world", world, "--base", str(base), "--output", str(teacher)]
    pretrain += ["--images", "200", "--batch", "8"]
    run(*pretrain, "--minutes", "0.02")
    first = json.loads((teacher / "progress.json").read_text())
    assert first["step"] >= 1
    assert f"continuing at step {first['step']}" in run(*pretrain, "--minutes", "0.06")
    assert json.loads((teacher / "progress.json").read_text())["step"] > first["step"]
    return teacher / "pipeline"


def test_base_teacher_and_student_are_made(tmp_path):
    teacher = make_teacher(tmp_path, "shapes")
    tokenizer = CLIPTokenizer.from_pretrained(teacher / "tokenizer")
    assert {word: tokenizer.tokenize(word) for word in vocabulary()} == {w: [f"{w}</w>"] for w in vocabulary()}
    student = tmp_path / "student"
    small = ["batch.groups=2", "timesteps.per_iteration=1", "saving.samples_every=0", "saving.tensorboard=false"]
    sets = [part for setting in small for part in ("--set", setting)]
    distil = ["-m", "tdmr1_cli", "distill", "--model", "tiny-tdm", "--model-path", str(teacher)]
    run(*distil, "--iterations", "1", "--output", str(student), *sets)
    assert (student / "export" / "pytorch_lora_weights.safetensors").stat().st_size > 1e6


def test_a_teacher_of_words_is_made(tmp_path):
    teacher = make_teacher(tmp_path, "words")
    tokenizer = CLIPTokenizer.from_pretrained(teacher / "tokenizer")
    signs = tokenizer.tokenize('a sign "NET"')
    assert signs == ["a</w>", "sign</w>", '"</w>', "n", "e", "t</w>", '"</w>']
    assert len(tokenizer('a sign "NET"').input_ids) <= tokenizer.model_max_length
    picture = StableDiffusion3Pipeline.from_pretrained(teacher, text_encoder_3=None, tokenizer_3=None)(
        'a sign "NET"', height=16, width=36, num_inference_steps=1, max_sequence_length=0
    ).images[0]
    assert picture.size == (36, 16)
