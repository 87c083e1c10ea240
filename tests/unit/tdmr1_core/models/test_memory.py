"""What needs less memory learns the same: micro-batches that fit, recomputed blocks, encoders that leave."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.naive import PROMPTS
from support.product import TinyPipeline, make_backbone, make_engine, random_trajectory
from torch import Tensor, nn

from tdmr1_core.engine import Engine
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.models.memory import compile_blocks, enable_gradient_checkpointing, encoder_identity
from tdmr1_core.models.quantization import bitsandbytes, quantize
from tdmr1_core.models.registry import builtin_models
from tdmr1_core.models.roles import FAKE, GENERATOR, SURROGATE, TEACHER, LoraShape, Roles
from tdmr1_core.models.sd3 import SD3Backbone
from tdmr1_core.records import Advantages
from tdmr1_core.runs.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from tdmr1_core.stages.micro_batches import MicroBatches
from tdmr1_core.stages.prompt_encoder import PromptEncoder
from tdmr1_rewards.api import RewardBatch, RewardResult

pytestmark = pytest.mark.unit

SECTIONS: dict[str, dict[str, Any]] = {
    "batch": {"groups": 2, "group_size": 3},
    "timesteps": {"per_iteration": 2, "k_sharing": "sample"},
}
ADVANTAGES = Advantages(torch.tensor([1.0, -0.5, -0.5, 0.9, 0.3, -1.2], dtype=torch.float64), 0.0)
TEXTS = PROMPTS[1:3]


def updated(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """The weights after two accumulated updates of every role on a fixed trajectory."""
    trajectory = random_trajectory(engine, [prompt.text for prompt in engine.prompts[:2]], 3, stored_velocity=False)
    for step in range(2):
        engine.update_fake(trajectory, step)
        engine.update_surrogate(trajectory, ADVANTAGES, step)
        engine.update_generator(trajectory, ADVANTAGES, step)
    return {role: engine.roles.weights(role) for role in (FAKE, SURROGATE, GENERATOR)}


def largest(one: dict[str, dict[str, Tensor]], two: dict[str, dict[str, Tensor]]) -> float:
    return max((value - two[role][name]).abs().max().item() for role in one for name, value in one[role].items())


def run_out_of_memory_beyond(rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a backbone answer for at most this many rows at once; the numbers of rows asked for are listed."""
    asked: list[int] = []
    velocity = SD3Backbone.velocity

    def limited(self: SD3Backbone, latents: Tensor, *arguments: Any, **named: Any) -> Tensor:
        asked.append(len(latents))
        if len(latents) > rows:
            raise torch.OutOfMemoryError("injected")
        return velocity(self, latents, *arguments, **named)

    monkeypatch.setattr(SD3Backbone, "velocity", limited)
    return asked


@pytest.mark.filterwarnings("ignore::tdmr1_core.errors.RunWarning")
def test_micro_batches_are_halved_until_they_fit_and_the_result_is_the_same(monkeypatch):
    whole = updated(make_engine(SECTIONS))
    asked = run_out_of_memory_beyond(5, monkeypatch)
    assert largest(updated(make_engine(SECTIONS)), whole) <= 1e-12
    assert max(asked) > 5 >= asked[-1]
    assert sum(rows > 5 for rows in asked) <= 6  # the size that fits is remembered: a failure a halving and stage


def run_out_of_memory_once(owner: Any, name: str, at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Let the at-th call run out of memory; gives the number of the next one."""
    real, calls = getattr(owner, name), itertools.count(1)

    def sometimes(*given: Any, **named: Any) -> Any:
        if next(calls) == at:
            raise torch.OutOfMemoryError("injected")
        return real(*given, **named)

    monkeypatch.setattr(owner, name, sometimes)
    return calls


def iterated(micro_batch: int | str = "auto") -> dict[str, dict[str, Tensor]]:
    """All weights after an iteration with a reward for bright pictures."""

    def bright(batch: RewardBatch) -> RewardResult:
        return RewardResult([float(image.mean()) for image in batch.images])

    engine = make_engine(SECTIONS | {"batch": {**SECTIONS["batch"], "micro_batch": micro_batch}}, reward=bright)
    engine.iteration()
    engine.close()
    return {role: engine.roles.weights(role) for role in engine.roles.names}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, dict[str, Tensor]]:
    return iterated()


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (SD3Backbone, "velocity", 2),  # in the rollout
        (SD3Backbone, "decode", 1),
        *((SD3Backbone, "velocity", at) for at in (5, 7, 9, 13)),  # in each of the updates
        *((torch.autograd, "grad", at) for at in (1, 2, 3)),  # in their backward passes
    ],
)
def test_running_out_of_memory_once_anywhere_changes_no_weight(undisturbed, owner, name, at, monkeypatch):
    calls = run_out_of_memory_once(owner, name, at, monkeypatch)
    with pytest.warns(RunWarning, match="ran out of memory with 6 images at once, and goes on with 3"):
        assert largest(iterated(), undisturbed) <= 1e-9
    assert next(calls) > at + 1, "it was tried again"


@pytest.mark.filterwarnings("ignore::tdmr1_core.errors.RunWarning")
def test_a_micro_batch_of_a_given_size_is_halved_too(undisturbed, monkeypatch):
    calls = run_out_of_memory_once(torch.autograd, "grad", 2, monkeypatch)
    assert largest(iterated(micro_batch=2), undisturbed) <= 1e-9
    assert next(calls) > 3


def test_running_out_of_memory_where_all_must_fit_stops_the_run(monkeypatch):
    run_out_of_memory_beyond(5, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        updated(make_engine(SECTIONS | {"batch": {**SECTIONS["batch"], "micro_batch": None}}))


def test_a_single_image_that_does_not_fit_is_a_sentence(monkeypatch):
    run_out_of_memory_beyond(0, monkeypatch)
    with pytest.raises(Tdmr1Error, match="out of memory with a single image"):
        updated(make_engine(SECTIONS))


@pytest.mark.parametrize(
    ("size", "images", "multiple", "expected"),
    [
        (2, 5, 1, [[0, 1], [2, 3], [4]]),
        (None, 3, 1, [[0, 1, 2]]),
        (9, 3, 1, [[0, 1, 2]]),
        (5, 8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (2, 6, 3, [[0, 1], [2, 3], [4, 5]]),
    ],
)
def test_rows_of_micro_batches(size, images, multiple, expected):
    seen: list[list[int]] = []
    MicroBatches(size).each(images, lambda rows: seen.append(rows.tolist()), multiple)
    assert seen == expected


def test_recomputed_blocks_run_under_the_role_they_ran_under():
    engine, plain = make_engine(SECTIONS), updated(make_engine(SECTIONS))
    roles, network = engine.roles, engine.roles.backbone.network
    enable_gradient_checkpointing(roles)
    passes: list[str] = []
    network.transformer_blocks[0].register_forward_pre_hook(lambda *_: passes.append(roles._acting[roles.backbone]))
    assert largest(updated(engine), plain) == 0
    assert passes.count(FAKE) > 2, "each update of the fake score must have been recomputed"
    assert passes[-1] == GENERATOR
    assert roles._acting == {roles.backbone: TEACHER}


def test_every_block_of_every_backbone_is_compiled(monkeypatch):
    roles = make_engine(SECTIONS).roles
    two = Roles(make_backbone(), roles.shape, (GENERATOR, FAKE), (), seed=0, teacher=make_backbone())
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda block: compiled.append(block))
    compile_blocks(two)
    assert compiled == [block for home in two.backbones for block in home.network.transformer_blocks]
    assert len(compiled) == 2 * len(roles.backbone.network.transformer_blocks)


def test_no_role_and_no_batch_runs_uncompiled(monkeypatch):
    import torch._dynamo

    plain = updated(make_engine(SECTIONS))
    engine, compile_one = make_engine(SECTIONS), nn.Module.compile
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    monkeypatch.setattr(torch._dynamo.config, "accumulated_recompile_limit", 8)
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    monkeypatch.setattr(nn.Module, "compile", lambda block: compile_one(block, backend="eager"))
    torch._dynamo.reset()
    compile_blocks(engine.roles)
    try:
        assert largest(updated(engine), plain) <= 1e-12
    finally:
        torch._dynamo.reset()


class Encoding(SD3Backbone):
    """Counts what is encoded, and where its encoder is meanwhile."""

    def __init__(self, scale: float = 1.0) -> None:
        pipeline = make_backbone().pipeline
        pipeline.text_encoder = nn.Linear(2, 2)
        nn.init.constant_(pipeline.text_encoder.weight, scale)
        nn.init.zeros_(pipeline.text_encoder.bias)
        super().__init__(pipeline, device=torch.device("cpu"), precision=torch.float64, max_sequence_length=0)
        self.encoded: list[str] = []

    def encode(self, prompts):
        self.encoded += prompts
        return super().encode(prompts)


def test_a_denoiser_waits_on_the_cpu_to_be_quantised():
    pipeline = TinyPipeline()
    pipeline.text_encoder = pipeline.text_encoder_2 = None
    device = torch.device("meta")
    named = {"device": device, "precision": torch.float32, "max_sequence_length": 0}
    waiting = SD3Backbone(pipeline, **named, denoiser_on_cpu=True)
    assert {weight.device.type for weight in waiting.network.parameters()} == {"cpu"}
    at_once = SD3Backbone(pipeline, **named)
    assert {weight.device for weight in at_once.network.parameters()} == {device}


@pytest.mark.parametrize("how", ["8bit", "nf4"])
def test_layers_come_to_the_device_one_by_one_with_their_weights_alone(how, monkeypatch):
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
def test_frozen_weights_in_fewer_bits_carry_loras_that_learn(how, bits):
    pytest.importorskip("bitsandbytes")
    whole, fewer = make_backbone(torch.float32), make_backbone(torch.float32)
    quantize(fewer, how)
    blocks = [backbone.network.transformer_blocks[0] for backbone in (whole, fewer)]
    plain, packed = (block.attn.to_q.weight for block in blocks)
    assert packed.numel() * packed.element_size() * 8 == plain.numel() * bits
    shape = LoraShape(4, 8.0, ("attn.to_q", "attn.to_out.0"))
    roles = Roles(fewer, shape, (GENERATOR, FAKE), (), seed=0)
    latents = torch.randn(2, *fewer.latent_shape(8, 8), dtype=fewer.dtype)
    asked = (latents, torch.full((2,), 0.5, dtype=fewer.dtype), fewer.encode(TEXTS))
    with torch.no_grad():
        exact = whole.velocity(*asked)
    with roles.acting(FAKE) as backbone:
        off = backbone.velocity(*asked)
    assert 0 < (off - exact).norm() / exact.norm() < 0.3
    off.square().mean().backward()
    for name, weight in roles.parameters(FAKE).items():
        assert weight.grad is not None
        assert (weight.grad.abs().max() > 0) == ("lora_B" in name), name  # A has none while B is zero
    assert all(weight.grad is None for weight in roles.parameters(GENERATOR).values())


def test_moments_in_eight_bits_are_kept_in_a_checkpoint(tmp_path):
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
    assert largest(updated(engine), updated(other)) == 0


def test_weights_are_taken_from_a_checkpoint_without_its_moments(tmp_path):
    engine, other = make_engine(SECTIONS), make_engine(SECTIONS)
    learnt = updated(engine)
    load_checkpoint(other, save_checkpoint(engine, tmp_path, 1), moments=False)
    assert all(not role.optimizer.state for role in other.trained.values())
    assert largest({role: other.roles.weights(role) for role in learnt}, learnt) == 0


def test_fewer_bits_without_their_package_are_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(Tdmr1Error, match="need bitsandbytes, which is not installed") as refused:
        bitsandbytes()
    assert refused.value.hint == "pip install 'tdmr1[quantised]'"


def test_a_text_is_encoded_once_for_this_run_and_others(tmp_path: Path):
    first = Encoding()
    encoder = PromptEncoder(first, make="sd3", cache=tmp_path)
    whole = encoder([*TEXTS, TEXTS[0]])
    assert first.encoded == list(TEXTS)
    second = Encoding()
    found = PromptEncoder(second, make="sd3", cache=tmp_path)([*TEXTS, TEXTS[0]])
    assert second.encoded == []
    assert torch.equal(found.embeddings, whole.embeddings)
    assert torch.equal(found.pooled, whole.pooled)
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"cut short")
    PromptEncoder(second, make="sd3", cache=tmp_path)(TEXTS)
    assert len(second.encoded) == 1
    other = Encoding(scale=2.0)
    PromptEncoder(other, make="sd3", cache=tmp_path)(TEXTS)
    assert other.encoded == list(TEXTS), "other encoders must not be answered for"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


FOREIGN = {
    "a bit flip": flip_a_bit,
    "another layout": lambda path: save_file({"other": torch.zeros(2)}, path),
    "no digest": lambda path: save_file(load_file(path), path),
    "not a file of tensors": lambda path: path.write_bytes(b"{}"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "of another text": lambda path: path.write_bytes(
        next(f for f in path.parents[1].rglob("*.s*") if f != path).read_bytes()
    ),
}


@pytest.mark.parametrize("damage", FOREIGN.values(), ids=FOREIGN)
def test_an_encoded_text_that_is_not_what_was_kept_is_encoded_anew(tmp_path, damage):
    whole = PromptEncoder(Encoding(), make="sd3", cache=tmp_path)(TEXTS)
    damaged = next(tmp_path.rglob("*.safetensors"))
    damage(damaged)
    again = Encoding()
    if damaged.is_dir():
        with pytest.raises(Tdmr1Error, match="encoded prompts can't be kept"):
            PromptEncoder(again, make="sd3", cache=tmp_path)(TEXTS)
        return
    for encoded in (1, 0):
        again.encoded.clear()
        found = PromptEncoder(again, make="sd3", cache=tmp_path)(TEXTS)
        assert len(again.encoded) == encoded, "it is written again"
        assert torch.equal(found.embeddings, whole.embeddings)


def test_an_encoded_text_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Tdmr1Error, match="encoded prompts can't be kept"):
        PromptEncoder(Encoding(), make="sd3", cache=tmp_path)(TEXTS)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_texts_that_are_taken_apart_otherwise_are_encoded_anew(tmp_path, monkeypatch):
    def tokenizer(template: str) -> Any:
        return SimpleNamespace(save_pretrained=lambda folder: Path(folder, "chat_template.jinja").write_text(template))

    def encoded_with(template: str) -> list[str]:
        backbone = Encoding()
        backbone.pipeline.tokenizer = tokenizer(template)
        PromptEncoder(backbone, make="sd3", cache=tmp_path)(TEXTS)
        return backbone.encoded

    assert encoded_with("one") == list(TEXTS)
    assert encoded_with("one") == []
    assert encoded_with("another") == list(TEXTS)
    monkeypatch.setattr("tdmr1_core.models.memory.versions", lambda: {"transformers": "another"})
    assert encoded_with("one") == list(TEXTS)


def test_a_tokenizer_is_known_wherever_it_was_loaded_from(tmp_path):
    from transformers import AutoTokenizer

    embedded = Path(builtin_models()[0].base) / "tokenizer"
    shutil.copytree(embedded, tmp_path / "copy")
    identities = []
    for folder in (embedded, tmp_path / "copy"):
        backbone = Encoding()
        backbone.pipeline.tokenizer = AutoTokenizer.from_pretrained(folder)
        identities.append(encoder_identity(backbone))
    assert identities[0] == identities[1]


def test_the_texts_used_last_stay_in_memory():
    backbone = Encoding()
    encoder = PromptEncoder(backbone, make="sd3", cache=None, most=2)
    one, two, three = PROMPTS[1:]
    asked = (([one, two], [one, two]), ([one], []), ([three], [three]), ([one], []), ([two], [two]))
    for texts, encoded in (*asked, ([one, two, three], [three])):
        backbone.encoded.clear()
        assert len(encoder(texts).embeddings) == len(texts)
        assert backbone.encoded == encoded


def test_prompts_that_cannot_be_kept_are_a_sentence(tmp_path):
    (tmp_path / "texts").write_text("a file, not a folder")
    with pytest.raises(Tdmr1Error, match="encoded prompts can't be kept in") as refused:
        PromptEncoder(Encoding(), make="sd3", cache=tmp_path / "texts")(TEXTS)
    assert refused.value.hint == "choose another memory.prompt_cache"


def test_encoders_come_back_only_for_what_is_new(monkeypatch):
    backbone = Encoding()
    moved: list[str] = []
    denoiser = nn.Linear(1, 1)
    monkeypatch.setattr(backbone.pipeline.text_encoder, "to", lambda where: moved.append(f"encoder to {where}"))
    monkeypatch.setattr(denoiser, "to", lambda where: moved.append(f"denoiser to {where}"))
    backbone.device = torch.device("meta")
    encoder = PromptEncoder(backbone, make="sd3", cache=None, instead_of=[denoiser])
    assert backbone.encoded == [""]
    for _ in range(2):
        encoder(TEXTS)
    assert backbone.encoded == ["", *TEXTS]
    in_turn = ["denoiser to cpu", "encoder to meta", "encoder to cpu", "denoiser to meta"]
    assert moved == in_turn * 2, "for the empty prompt, and once for the two others"
