"""`tdmr1 train --reward ocr_match --model sd3.5-tdm` with tiny networks in place of the published weights."""

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from support.command_line import environment
from support.pipelines import SD3_TARGETS, make_sd35, published_checkpoint

pytestmark = pytest.mark.integration

SMALL = (
    "batch.groups=2",
    "batch.group_size=2",
    "evaluation.images=2",
    "saving.samples_every=0",
    "timesteps.per_iteration=2",
)
SETS = [
    part
    for setting in (*SMALL, "model.height=64", "model.width=64", "model.precision=fp32", "generator.learning_rate=0.01")
    for part in ("--set", setting)
]
"""SMALL, the image size of the tiny network, and the precision of the exported script."""
LORA = "Luo-Yihong/TDM_sd3-5_lora"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return make_sd35(tmp_path_factory.mktemp("model") / "sd35")


@pytest.fixture(scope="module")
def hub(pipeline, tmp_path_factory):
    """A hub cache with the few-step LoRA in the authors' layout."""
    from diffusers import SD3Transformer2DModel

    home = tmp_path_factory.mktemp("hub")
    folder = home / "hub" / f"models--{LORA.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("b" * 40)
    file = folder / "snapshots" / ("b" * 40) / "tdm_sd3-5_lora.ckpt"
    file.parent.mkdir(parents=True)
    published_checkpoint(SD3Transformer2DModel.from_pretrained(pipeline / "transformer"), SD3_TARGETS, file)
    return home, file


@pytest.fixture(scope="module")
def trained(pipeline, hub, tdmr1, tmp_path_factory):
    run = tmp_path_factory.mktemp("published") / "run"
    # The tiny network draws no letters: ocr_match scores all images equally, and only jpeg_size differs.
    arguments = ["--reward", "ocr_match", "--reward", "jpeg_size", "--model", "sd3.5-tdm", "--model-path", pipeline]
    done = tdmr1("train", *arguments, *SETS, "--iterations", 2, "--output", run, HF_HOME=str(hub[0]))
    tdmr1("export", run, "--comfyui", HF_HOME=str(hub[0]))
    return run, done


def test_the_loaded_lora_is_printed_and_recorded(trained, hub):
    run, done = trained
    sha256 = hashlib.sha256(hub[1].read_bytes()).hexdigest()
    assert "tdm_sd3-5_lora.ckpt (published list without names, matched by position" in done.stderr
    assert f"rank 32, alpha 64, sha256 {sha256[:16]}" in done.stderr
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["tdmr1"]["lora"]["sha256"] == sha256
    assert config["surrogate"]["tau_min"] == 0.3  # of the preset ocr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert "reward/ocr_match/mean" in rows[0]
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert {(row["prompts"], row["n"]) for row in evaluations} == {("ocr", 2), ("ocr-held-out", 2)}


def test_the_exported_script_samples_the_same_image_without_tdmr1(trained, pipeline, hub, monkeypatch):
    run, _ = trained
    card = (run / "export" / "README.md").read_text()
    script = re.search(r"```python\n(.+?)```", card, re.DOTALL)[1]
    assert "tdmr1" not in script
    assert str(pipeline) not in card
    script = script.replace(f"path/to/{pipeline.name}", str(pipeline))
    subprocess.run([sys.executable, "-c", script], cwd=run / "export", env=environment(), check=True)
    sampled = np.asarray(Image.open(run / "export" / "image.png")).astype(int)

    from tdmr1_core.models.roles import GENERATOR_EMA
    from tdmr1_core.runs.load_run import load_trained
    from tdmr1_core.stages.sampling import sample

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub[0] / "hub"))
    engine = load_trained(run)
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    images = {}
    for name, weights in (("before", engine.start), ("after", engine.roles.weights(GENERATOR_EMA))):
        engine.roles.load(GENERATOR_EMA, weights, name)
        with torch.no_grad(), engine.roles.acting(GENERATOR_EMA) as backbone:
            latents = sample(backbone, noise, engine.conditioning(engine.prompts[:1]), engine.sigmas)
            images[name] = backbone.decode(latents[-1])[0].astype(int)
    assert np.abs(sampled - images["after"]).max() <= 1
    assert np.abs(sampled - images["before"]).max() > 1


def test_the_exported_lora_records_its_origin(trained, pipeline, hub):
    with safe_open(trained[0] / "export" / "pytorch_lora_weights.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["tdmr1.base_model"] == f"path/to/{pipeline.name}"
    assert json.loads(metadata["tdmr1.rewards"]) == {"ocr_match": 1.0, "jpeg_size": 1.0}
    assert metadata["tdmr1.started_from"] == hashlib.sha256(hub[1].read_bytes()).hexdigest()
    assert (trained[0] / "export" / "comfyui_lora.safetensors").is_file()


def test_missing_weights_are_reported_before_the_run_folder_is_created(tdmr1, tmp_path):
    arguments = ["train", "--reward", "ocr_match", "--model", "sd3.5-tdm", "--output", tmp_path / "run"]
    printed = tdmr1(*arguments, HF_HOME=str(tmp_path), code=2).stderr
    (error,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "stabilityai/stable-diffusion-3.5-medium (model_index.json)" in error
    assert error.endswith(" [hub-unavailable]")
    assert "HF_HUB_OFFLINE" in printed.partition("hint: ")[2]
    assert not (tmp_path / "run").exists()
