"""What made the packaged model still runs: a handful of steps of each part, stopped and continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
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


def test_base_teacher_and_student_are_made(tmp_path):
    base, teacher, student = tmp_path / "base", tmp_path / "teacher", tmp_path / "student"
    run(str(RECIPE / "base.py"), "--output", str(base), "--steps", "2", "--images", "300")
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    assert {word: tokenizer.tokenize(word) for word in vocabulary()} == {w: [f"{w}</w>"] for w in vocabulary()}
    pretrain = [str(RECIPE / "pretrain.py"), "--base", str(base), "--output", str(teacher), "--images", "200"]
    pretrain += ["--batch", "8"]
    run(*pretrain, "--minutes", "0.02")
    first = json.loads((teacher / "progress.json").read_text())
    assert first["step"] >= 1
    assert f"continuing at step {first['step']}" in run(*pretrain, "--minutes", "0.06")
    assert json.loads((teacher / "progress.json").read_text())["step"] > first["step"]
    small = ["batch.groups=2", "timesteps.per_iteration=1", "saving.samples_every=0", "saving.tensorboard=false"]
    sets = [part for setting in small for part in ("--set", setting)]
    distil = ["-m", "tdmr1_cli", "distill", "--model", "tiny-tdm", "--model-path", str(teacher / "pipeline")]
    run(*distil, "--iterations", "1", "--output", str(student), *sets)
    assert (student / "export" / "pytorch_lora_weights.safetensors").stat().st_size > 1e6
