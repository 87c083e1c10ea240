"""A plan's arithmetic: what it says of the embedded model, and how settings change it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from integration.support import small_config

from tdmr1_cli.plan import parse_memory
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.registry import builtin_models
from tdmr1_core.plan import fitting_micro_batch, passes_an_image, plan

pytestmark = pytest.mark.unit

TINY = builtin_models()[0]


@pytest.fixture(scope="module")
def whole():
    return plan(small_config(), TINY)


def test_parameters_are_those_of_the_weights(whole):
    from diffusers import SD3Transformer2DModel

    network = SD3Transformer2DModel.from_pretrained(TINY.base, subfolder="transformer")
    assert whole.parts["denoiser"] == 4 * sum(weight.numel() for weight in network.parameters())


def test_memory_follows_the_settings(whole):
    halved = plan(small_config("batch.micro_batch=4", "memory.text_encoders=cpu"), TINY)
    assert halved.parts["activations"] == whole.parts["activations"] / 2
    assert halved.parts["text encoders"] == 0 < whole.parts["text encoders"]
    assert halved.micro_batches == 2
    recomputed = plan(small_config("memory.gradient_checkpointing=true"), TINY)
    assert recomputed.peak < whole.peak
    assert recomputed.passes > whole.passes
    split = plan(small_config(), TINY, processes=2)
    assert (split.images, split.micro_batch) == (8, 4)
    with pytest.raises(Tdmr1Error, match="can't be split"):
        plan(small_config(), TINY, processes=3)


def test_a_published_model_is_planned_by_its_configs_alone(tmp_path):
    entry = next(entry for entry in builtin_models() if entry.name == "sd3.5-tdm")
    with pytest.raises(Tdmr1Error, match="is not in the hub's cache here") as refused:
        plan(small_config(), entry)
    assert "--model-path" in refused.value.hint
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        shutil.copy(Path(TINY.base) / part / "config.json", tmp_path / part)
    shutil.copy(Path(TINY.base) / "model_index.json", tmp_path)
    known = plan(small_config("model.height=24", "model.width=24"), replace(entry, base=str(tmp_path)))
    parts = known.parts["denoiser"] + 2 * known.parts["autoencoder"]
    assert known.parts["text encoders"] == pytest.approx(2 * entry.weights_gb * 1e9 - parts)


def test_the_micro_batch_that_fits(whole):
    assert fitting_micro_batch(whole, small_config(), whole.peak) == 8
    assert fitting_micro_batch(whole, small_config(), whole.peak - 1) == 7
    assert fitting_micro_batch(whole, small_config(), 1e9) == 0


def test_passes_of_the_published_settings():
    """4 sampling; of 2 steps each: fake 1 + 2, surrogate 2 + 2, generator 2 + 2 teacher + fake + reference + 2."""
    published = small_config("surrogate.updates=1", "surrogate.trust_region=0.001")
    assert passes_an_image(published, TINY) == 4 + 2 * (3 + 4 + 8)


@pytest.mark.parametrize(("text", "expected"), [("24GB", 24e9), ("24", 24e9), ("1.5 GiB", 1.5 * 2**30)])
def test_memory_as_typed(text, expected):
    assert parse_memory(text) == expected
    with pytest.raises(Tdmr1Error, match="--gpu"):
        parse_memory("a lot")
