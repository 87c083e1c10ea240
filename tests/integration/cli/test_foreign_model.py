"""A model like SD3.5 whose latents, text encoders and image size differ from those of the embedded model."""

import json

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from support.pipelines import make_sd35

pytestmark = pytest.mark.integration

SETTINGS = ("batch.groups=2", "batch.group_size=2", "model.rank=4", "model.alpha=8", "timesteps.per_iteration=2")
SETS = [part for setting in (*SETTINGS, "saving.samples_every=0") for part in ("--set", setting)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A pipeline with 16 latent channels, 4 autoencoder levels, dual attention in its first block, 64 x 64 pixels."""
    return make_sd35(tmp_path_factory.mktemp("foreign") / "sd35-like")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("two red circles\nthree green squares\n")
    return file


@pytest.fixture(scope="module")
def distilled(directory, prompts, tdmr1, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled") / "run"
    tdmr1("distill", "--model", directory, "--prompts", prompts, "--iterations", 2, "--output", folder, *SETS)
    return folder / "export"


def test_distillation_writes_a_lora_that_diffusers_loads(directory, distilled):
    weights = load_file(distilled / "pytorch_lora_weights.safetensors")
    assert not any(".attn2." in name for name in weights)
    assert max(weight.abs().max().item() for name, weight in weights.items() if ".lora_B." in name) > 0
    pipeline = StableDiffusion3Pipeline.from_pretrained(directory, text_encoder_3=None, tokenizer_3=None)
    draw = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt", "max_sequence_length": 0}
    before, after = (_draw(pipeline, lora, draw) for lora in (None, distilled))
    assert before.shape[-2:] == (64, 64)
    assert not torch.equal(before, after)


def _draw(pipeline, lora, options):
    if lora is not None:
        pipeline.load_lora_weights(str(lora))
    return pipeline("two red circles", generator=torch.Generator().manual_seed(0), **options).images


def test_the_distilled_model_is_trained_evaluated_and_exported(directory, distilled, prompts, tdmr1, tmp_path):
    run = tmp_path / "run"
    lora = distilled / "pytorch_lora_weights.safetensors"
    arguments = ["--lora", lora, "--reward", "jpeg_size", "--prompts", prompts, "--iterations", 1, "--output", run]
    tdmr1("train", "--model", directory, *arguments, *SETS, "--set", "evaluation.images=4")
    (metrics,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics["step"] == 1
    document = json.loads(tdmr1("export", run, "--json").stdout)
    assert "attn2" not in " ".join(load_file(run / "export" / "pytorch_lora_weights.safetensors"))
    assert document
