"""Quantized networks and optimizer states (bitsandbytes)."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from support.errors import raises
from support.naive import PROMPTS
from support.product import TinyPipeline, make_backbone, make_engine
from support.role_updates import SECTIONS, largest_difference, updated

from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.quantization import bitsandbytes, quantize
from tdmr1_core.models.roles import FAKE, GENERATOR, Roles
from tdmr1_core.models.sd3 import SD3Backbone
from tdmr1_core.runs.checkpoints.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.unit

TEXTS = PROMPTS[1:3]


def test_a_denoiser_stays_on_the_cpu_until_it_is_quantized():
    pipeline = TinyPipeline()
    pipeline.text_encoder = pipeline.text_encoder_2 = None
    device = torch.device("meta")
    named = {"device": device, "precision": torch.float32, "max_sequence_length": 0}
    offloaded = SD3Backbone(pipeline, **named, denoiser_on_cpu=True)
    assert {weight.device.type for weight in offloaded.network.parameters()} == {"cpu"}
    direct = SD3Backbone(pipeline, **named)
    assert {weight.device for weight in direct.network.parameters()} == {device}


@pytest.mark.parametrize("how", ["8bit", "nf4"])
def test_layers_are_moved_to_the_device_one_by_one(how, monkeypatch):
    pytest.importorskip("bitsandbytes")
    backbone, made = make_backbone(torch.float32), []
    layers = bitsandbytes().nn
    kind = {"8bit": "Linear8bitLt", "nf4": "Linear4bit"}[how]

    class Watched(getattr(layers, kind)):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append(self.weight.device.type)

    monkeypatch.setattr(layers, kind, Watched)
    quantize(backbone, how)
    assert set(made) == {"meta"}
    assert {weight.device.type for weight in backbone.network.parameters()} == {"cpu"}


@pytest.mark.parametrize(("how", "bits"), [("8bit", 8), ("nf4", 4)])
def test_loras_on_quantized_weights_get_gradients(how, bits):
    pytest.importorskip("bitsandbytes")
    full, quantized = make_backbone(torch.float32), make_backbone(torch.float32)
    quantize(quantized, how)
    blocks = [backbone.network.transformer_blocks[0] for backbone in (full, quantized)]
    plain, packed = (block.attn.to_q.weight for block in blocks)
    assert packed.numel() * packed.element_size() * 8 == plain.numel() * bits
    shape = LoraShape(4, 8.0, ("attn.to_q", "attn.to_out.0"))
    roles = Roles(quantized, shape, (GENERATOR, FAKE), (), seed=0)
    latents = torch.randn(2, *quantized.latent_shape(8, 8), dtype=quantized.dtype)
    inputs = (latents, torch.full((2,), 0.5, dtype=quantized.dtype), quantized.encode(TEXTS))
    with torch.no_grad():
        exact = full.velocity(*inputs)
    with roles.acting(FAKE) as backbone:
        found = backbone.velocity(*inputs)
    assert 0 < (found - exact).norm() / exact.norm() < 0.3
    found.square().mean().backward()
    for name, weight in roles.parameters(FAKE).items():
        assert weight.grad is not None
        assert (weight.grad.abs().max() > 0) == ("lora_B" in name), name  # the gradient of A is zero while B is zero
    assert all(weight.grad is None for weight in roles.parameters(GENERATOR).values())


def test_a_checkpoint_restores_8bit_moments(tmp_path):
    pytest.importorskip("bitsandbytes")
    sections = {**SECTIONS, "memory": {"optimizer": "8bit", "trajectories": "cpu"}}
    engine = make_engine(sections)
    updated(engine)
    role = engine.trained[GENERATOR]
    assert type(role.optimizer).__name__ == "AdamW8bit"
    other = make_engine(sections)
    load_checkpoint(other, save_checkpoint(engine, tmp_path, 1))
    for mine, theirs in zip(role.parameters.values(), other.trained[GENERATOR].parameters.values(), strict=True):
        kept, loaded = role.optimizer.state[mine], other.trained[GENERATOR].optimizer.state[theirs]
        assert kept.keys() == loaded.keys()
        assert all(torch.equal(torch.as_tensor(kept[kind]), torch.as_tensor(loaded[kind])) for kind in kept)
    assert largest_difference(updated(engine), updated(other)) == 0


def test_weights_can_be_loaded_without_moments(tmp_path):
    engine, other = make_engine(SECTIONS), make_engine(SECTIONS)
    expected = updated(engine)
    load_checkpoint(other, save_checkpoint(engine, tmp_path, 1), moments=False)
    assert all(not role.optimizer.state for role in other.trained.values())
    assert largest_difference({role: other.roles.weights(role) for role in expected}, expected) == 0


def test_quantization_without_bitsandbytes_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with raises("dependency-missing", package="bitsandbytes") as caught:
        bitsandbytes()
    assert "pip install 'tdmr1[quantised]'" in caught.value.hint
