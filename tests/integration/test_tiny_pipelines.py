"""Tiny pipelines of every family: the classes of diffusers load them, and their images depend on every input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from tdmr1_core.conformance.tiny_pipelines import MAKERS, make_tiny_pipeline

pytestmark = pytest.mark.integration

CLASSES = {
    "sd3": "StableDiffusion3Pipeline",
    "zimage": "ZImagePipeline",
    "flux2_klein": "Flux2KleinPipeline",
    "krea2": "Krea2Pipeline",
    "qwen_image": "QwenImagePipeline",
    "flux1": "FluxPipeline",
    "ernie_image": "ErnieImagePipeline",
}
WITH_BASE = ("flux2_klein", "krea2")
FURTHER = {"ernie_image": {"use_pe": False}, "qwen_image": {"negative_prompt": " "}}
LAST = "transformer_blocks.1."
DROPPED = {
    "sd3": tuple(LAST + name for name in ("attn.add_q_proj", "attn.norm_added_q")),
    "qwen_image": tuple(LAST + name for name in ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")),
}
"""Parameters of the last block that only reach the text tokens, which both networks drop after it."""
LARGEST = 8_000_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {family: make_tiny_pipeline(family, folder / family) for family in MAKERS}


def load(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image(pipeline, family, prompt, steps=4):
    """An image (64, 64, 3) with values from 0 to 255."""
    generator = torch.Generator().manual_seed(5)
    result = pipeline(
        prompt=prompt,
        height=64,
        width=64,
        num_inference_steps=steps,
        generator=generator,
        output_type="np",
        **FURTHER.get(family, {}),
    )
    return 255 * result.images[0]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("family", MAKERS)
def test_the_image_depends_on_the_prompt_only(folders, family):
    pipeline = load(folders[family])
    assert type(pipeline).__name__ == CLASSES[family]
    one, again, other = (image(pipeline, family, prompt) for prompt in ("red circles", "red circles", "a blue cat"))
    assert one.shape == (64, 64, 3)
    assert np.isfinite(one).all()
    assert np.array_equal(one, again)
    assert np.abs(one - other).mean() > 1
    assert one.std() > 1
    assert np.mean((one <= 0) | (one >= 255)) < 0.2


@pytest.mark.parametrize("family", MAKERS)
def test_every_parameter_of_the_transformer_changes_its_output(folders, family):
    pipeline, calls = load(folders[family]), []
    pipeline.transformer.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    image(pipeline, family, "red circles", steps=2)
    arguments, named = calls[0]
    output = pipeline.transformer(*arguments, **named)[0]
    sum(part.square().sum() for part in output).backward()
    gradients = {name: parameter.grad for name, parameter in pipeline.transformer.named_parameters()}
    unused = {name for name, gradient in gradients.items() if gradient is None or not gradient.any()}
    dropped = {name for name in gradients if name.startswith(DROPPED.get(family, ()))}
    assert unused == dropped


@pytest.mark.parametrize("family", MAKERS)
def test_equal_seeds_give_equal_bytes(folders, family, tmp_path):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    equal = files(make_tiny_pipeline(family, tmp_path / "equal"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert equal == files(folders[family])
    other = files(make_tiny_pipeline(family, tmp_path / "other", seed=1))
    assert {path.parts[0] for path in equal if equal[path] != other[path]} == {"transformer"}
    assert sum(path.stat().st_size for path in folders[family].rglob("*") if path.is_file()) < LARGEST


@pytest.mark.parametrize("family", WITH_BASE)
def test_the_base_is_not_distilled(folders, family, tmp_path):
    base = make_tiny_pipeline(family, tmp_path / "base", distilled=False)
    assert [load(folder).config.is_distilled for folder in (folders[family], base)] == [True, False]


def test_an_empty_prompt_and_characters_of_any_language_are_encoded(folders):
    for family in MAKERS:
        pipeline = load(folders[family])
        images = [image(pipeline, family, prompt, steps=2) for prompt in ("", "日本 zürich 🙂", "ελληνικά")]
        assert np.abs(images[1] - images[2]).max() > 0
        assert np.isfinite(images).all()


def test_the_decoders_statistics_are_not_trivial(folders):
    for family in ("flux2_klein", "ernie_image"):
        (path,) = (folders[family] / "vae").glob("*.safetensors")
        tensors = load_file(path)
        assert tensors["bn.running_mean"].std() > 0.5
        assert tensors["bn.running_var"].std() > 0.5
    for family in ("krea2", "qwen_image"):
        config = json.loads((folders[family] / "vae" / "config.json").read_text())
        assert [len(set(config[name])) for name in ("latents_mean", "latents_std")] == [16, 16]


def test_the_system_prompt_has_the_length_that_the_pipelines_drop(folders):
    for family in ("krea2", "qwen_image"):
        pipeline = load(folders[family])
        prefix = (
            pipeline.prompt_template_encode_prefix
            if family == "krea2"
            else pipeline.prompt_template_encode.partition("{}")[0]
        )
        assert len(pipeline.tokenizer(prefix).input_ids) == pipeline.prompt_template_encode_start_idx == 34
