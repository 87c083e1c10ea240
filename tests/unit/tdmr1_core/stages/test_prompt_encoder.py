"""Prompts are encoded once, cached in memory or on disk, with the text encoders on the device only when needed."""

from __future__ import annotations

import errno
import math
import os
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.errors import raises
from support.naive import PROMPTS
from support.product import make_backbone
from torch import nn

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.memory import encoder_identity
from tdmr1_core.models.offloaded_encoders import OffloadedEncoders
from tdmr1_core.models.sd3 import SD3Backbone
from tdmr1_core.records import Conditioning
from tdmr1_core.stages.prompt_encoder import PromptEncoder, size_of

pytestmark = pytest.mark.unit

TEXTS = PROMPTS[1:3]
TEXT_BYTES = 8 * (3 * 12 + 10)
"""Bytes of an encoded text of the tiny network."""


class RecordingBackbone(SD3Backbone):
    """A backbone that lists the texts that it encodes."""

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


def test_a_text_is_encoded_once_in_all_runs(tmp_path: Path):
    first = RecordingBackbone()
    encoder = PromptEncoder(first, make="sd3", cache=tmp_path, budget=1e9)
    expected = encoder([*TEXTS, TEXTS[0]])
    assert first.encoded == list(TEXTS)
    second = RecordingBackbone()
    found = PromptEncoder(second, make="sd3", cache=tmp_path, budget=1e9)([*TEXTS, TEXTS[0]])
    assert second.encoded == []
    assert torch.equal(found.embeddings, expected.embeddings)
    assert torch.equal(found.pooled, expected.pooled)
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"cut short")
    PromptEncoder(second, make="sd3", cache=tmp_path, budget=1e9)(TEXTS)
    assert len(second.encoded) == 1
    other = RecordingBackbone(scale=2.0)
    PromptEncoder(other, make="sd3", cache=tmp_path, budget=1e9)(TEXTS)
    assert other.encoded == list(TEXTS), "other text encoders need other cache files"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "a bit flip": flip_a_bit,
    "another layout": lambda path: save_file({"other": torch.zeros(2)}, path),
    "no digest": lambda path: save_file(load_file(path), path),
    "not a safetensors file": lambda path: path.write_bytes(b"{}"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "the file of another text": lambda path: path.write_bytes(
        next(f for f in path.parents[1].rglob("*.s*") if f != path).read_bytes()
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_file_is_written_again(tmp_path, damage):
    expected = PromptEncoder(RecordingBackbone(), make="sd3", cache=tmp_path, budget=1e9)(TEXTS)
    damaged = next(tmp_path.rglob("*.safetensors"))
    damage(damaged)
    again = RecordingBackbone()
    if damaged.is_dir():
        with raises("not-writable", path=str(tmp_path)):
            PromptEncoder(again, make="sd3", cache=tmp_path, budget=1e9)(TEXTS)
        return
    for encoded in (1, 0):
        again.encoded.clear()
        found = PromptEncoder(again, make="sd3", cache=tmp_path, budget=1e9)(TEXTS)
        assert len(again.encoded) == encoded, "the file must be written again"
        assert torch.equal(found.embeddings, expected.embeddings)


def test_a_cache_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with raises("not-writable", path=str(tmp_path)):
        PromptEncoder(RecordingBackbone(), make="sd3", cache=tmp_path, budget=1e9)(TEXTS)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_another_tokenizer_or_version_needs_another_cache_file(tmp_path, monkeypatch):
    def tokenizer(template: str) -> Any:
        return SimpleNamespace(save_pretrained=lambda folder: Path(folder, "chat_template.jinja").write_text(template))

    def encoded_with(template: str) -> list[str]:
        backbone = RecordingBackbone()
        backbone.pipeline.tokenizer = tokenizer(template)
        PromptEncoder(backbone, make="sd3", cache=tmp_path, budget=1e9)(TEXTS)
        return backbone.encoded

    assert encoded_with("one") == list(TEXTS)
    assert encoded_with("one") == []
    assert encoded_with("another") == list(TEXTS)
    monkeypatch.setattr("tdmr1_core.models.memory.versions", lambda: {"transformers": "another"})
    assert encoded_with("one") == list(TEXTS)


def test_the_identity_of_a_tokenizer_does_not_depend_on_its_folder(tmp_path):
    from transformers import AutoTokenizer

    embedded = Path(BUILTIN_MODELS[0].base) / "tokenizer"
    shutil.copytree(embedded, tmp_path / "copy")
    identities = []
    for folder in (embedded, tmp_path / "copy"):
        backbone = RecordingBackbone()
        backbone.pipeline.tokenizer = AutoTokenizer.from_pretrained(folder)
        identities.append(encoder_identity(backbone))
    assert identities[0] == identities[1]


def test_the_most_recently_used_texts_are_kept_in_memory():
    backbone = RecordingBackbone()
    encoder = PromptEncoder(backbone, make="sd3", cache=None, budget=2.5 * TEXT_BYTES)
    one, two, three = PROMPTS[1:]
    requests = (([one, two], [one, two]), ([one], []), ([three], [three]), ([one], []), ([two], [two]))
    for texts, encoded in (*requests, ([one, two, three], [three])):
        backbone.encoded.clear()
        assert len(encoder(texts).embeddings) == len(texts)
        assert backbone.encoded == encoded
        assert sum(map(size_of, encoder._kept.values())) == encoder._kept_bytes <= encoder.budget


def test_the_size_of_an_encoded_text_is_that_of_its_tensors():
    embeddings, pooled = torch.zeros(1, 3, 12, dtype=torch.float64), torch.zeros(1, 10, dtype=torch.bfloat16)
    assert size_of(Conditioning(embeddings, pooled)) == 8 * 36 + 2 * 10
    assert size_of(Conditioning(embeddings, pooled, torch.tensor([3]))) == 8 * 36 + 2 * 10 + 8


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "texts").write_text("a file, not a folder")
    with raises("not-writable", path=str(tmp_path / "texts")) as caught:
        PromptEncoder(RecordingBackbone(), make="sd3", cache=tmp_path / "texts", budget=1e9)(TEXTS)
    assert "memory.prompt_cache" in caught.value.hint


@dataclass
class Offloaded:
    """A backbone with offloaded encoders, and the moves of its networks."""

    backbone: RecordingBackbone = field(default_factory=RecordingBackbone)
    moves: list[str] = field(default_factory=list)
    loaded: list[nn.Module] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch(self.backbone.network, "denoiser")
        self.watch(self.backbone.pipeline.text_encoder, "encoder")
        self.backbone.pipeline.text_encoder_2 = None
        self.backbone.device = torch.device("meta")

    def watch(self, network: nn.Module, name: str) -> None:
        """Record the moves of a network instead of moving it."""
        network.to = lambda where: self.moves.append(f"{name} to {where}")  # type: ignore[assignment, method-assign]

    def load(self) -> dict[str, nn.Module]:
        """New encoders, as from disk."""
        self.loaded.append(nn.Linear(2, 2))
        self.watch(self.loaded[-1], "new encoder")
        return {"text_encoder": self.loaded[-1]}

    def encoder(self, *, texts: float = math.inf, upcoming: Sequence[str] | None = None, **options: Any):
        """A prompt encoder whose budget holds this number of texts."""
        ahead = None if upcoming is None else (lambda: upcoming)
        encoders = OffloadedEncoders([self.backbone], options.pop("load", self.load))
        options = {"cache": None, "budget": texts * TEXT_BYTES, **options}
        return PromptEncoder(self.backbone, make="sd3", encoders=encoders, upcoming=ahead, **options)

    def new(self) -> list[str]:
        """The texts encoded since the last call."""
        found = list(self.backbone.encoded)
        self.backbone.encoded.clear()
        return found


IN_TURN = ["denoiser to cpu", "encoder to meta", "encoder to cpu", "denoiser to meta"]
RELEASED = ["denoiser to cpu", "encoder to meta", "denoiser to meta"]


def test_text_encoders_are_moved_to_the_device_for_new_texts_only():
    offloaded = Offloaded()
    encoder = offloaded.encoder()
    for _ in range(2):
        encoder(TEXTS)
    assert offloaded.new() == ["", *TEXTS]
    assert offloaded.moves == IN_TURN, "once for the empty prompt and both texts"
    encoder(PROMPTS[3:])
    assert offloaded.new() == [PROMPTS[3]]
    assert offloaded.moves == IN_TURN * 2
    assert not offloaded.loaded


def test_texts_in_the_cache_folder_still_need_the_empty_prompt(tmp_path):
    PromptEncoder(RecordingBackbone(), make="sd3", cache=tmp_path, budget=0)(PROMPTS[1:])
    offloaded = Offloaded()
    encoder = offloaded.encoder(cache=tmp_path, upcoming=PROMPTS[1:], budget=1e9)
    for texts in (TEXTS, PROMPTS[1:]):
        encoder(texts)
    assert offloaded.new() == [""]
    assert offloaded.moves == RELEASED


def test_all_texts_that_fit_are_encoded_once_and_the_encoders_are_released():
    offloaded = Offloaded()
    alive = weakref.ref(offloaded.backbone.pipeline.text_encoder)
    encoder = offloaded.encoder(texts=3, upcoming=[TEXTS[1], PROMPTS[3], TEXTS[0]])
    for texts in (TEXTS[:1], TEXTS, PROMPTS[3:], TEXTS):
        encoder(texts)
    assert offloaded.new() == ["", *PROMPTS[1:]]
    assert offloaded.moves == RELEASED, "released on the device, not moved to the host first"
    assert alive() is None
    assert offloaded.backbone.text_encoders() == []
    assert not offloaded.loaded


def test_released_encoders_are_loaded_again_once_for_an_unknown_text():
    offloaded = Offloaded()
    encoder = offloaded.encoder(texts=3, upcoming=TEXTS)
    encoder(TEXTS)
    offloaded.moves.clear()
    for text in (PROMPTS[3], ""):
        encoder([text])
    assert len(offloaded.loaded) == 1
    assert offloaded.backbone.text_encoders() == offloaded.loaded
    again = [f"new {each}" if each.startswith("encoder") else each for each in IN_TURN]
    assert offloaded.moves == again * 2, "they then stay on the CPU"


def test_encoders_that_cannot_be_loaded_again_are_an_error_and_the_denoiser_returns():
    def load() -> dict[str, nn.Module]:
        raise Tdmr1Error("diffusers cannot load the model", code="model-invalid")

    offloaded = Offloaded()
    encoder = offloaded.encoder(upcoming=[], load=load)
    encoder(TEXTS)
    with raises("model-invalid"):
        encoder(PROMPTS[3:])
    assert offloaded.moves[-1] == "denoiser to meta"
    assert len(encoder(TEXTS)) == 2, "known texts need no encoder"


def test_encoders_that_cannot_be_loaded_again_are_not_released():
    offloaded = Offloaded()
    encoder = offloaded.encoder(upcoming=TEXTS, load=None)
    encoder(TEXTS[:1])
    encoder(PROMPTS[3:])
    assert offloaded.moves == IN_TURN * 2


def test_encoders_shared_by_two_backbones_are_released_in_both():
    offloaded, other = Offloaded(), RecordingBackbone()
    other.pipeline.text_encoder = offloaded.backbone.pipeline.text_encoder
    encoders = OffloadedEncoders([offloaded.backbone, other], offloaded.load)
    offloaded.watch(other.network, "teacher")
    with encoders.on_device():
        encoders.release()
    assert other.pipeline.text_encoder is None
    both = ["denoiser to cpu", "teacher to cpu", "encoder to meta", "denoiser to meta", "teacher to meta"]
    assert offloaded.moves == both
    with encoders.on_device():
        assert other.pipeline.text_encoder is offloaded.backbone.pipeline.text_encoder is offloaded.loaded[0]


def test_texts_that_do_not_fit_are_encoded_in_blocks_in_the_order_of_their_use():
    """The budget holds two texts; one more is encoded at the end of a block, to know its size."""
    one, two, three = PROMPTS[1:]
    order = [one, two, three, one, three, two]
    backbone = RecordingBackbone()
    plain = PromptEncoder(backbone, make="sd3", cache=None, budget=1e9)
    offloaded, left = Offloaded(), list(order)
    encoder = offloaded.encoder(texts=2.5, upcoming=left)
    blocks = []
    for text in order:
        found, expected = encoder([text]).to(torch.device("meta")), plain([text])
        assert found.embeddings.shape == expected.embeddings.shape
        assert encoder._kept_bytes <= 2.5 * TEXT_BYTES
        blocks.append(offloaded.new())
        assert torch.equal(encoder._kept[text].embeddings, expected.embeddings)
        del left[0]
    assert blocks == [["", one, two, three], [], [three, one, two], [], [], [two]]
    assert offloaded.moves == IN_TURN * 2 + RELEASED, "at the end, all that is left fits"


def test_texts_that_exceed_the_budget_are_encoded_without_further_ones():
    offloaded = Offloaded()
    encoder = offloaded.encoder(texts=1.5, upcoming=PROMPTS[3:])
    assert len(encoder(TEXTS)) == 2
    assert offloaded.new() == ["", *TEXTS]
    assert list(encoder._kept) == [TEXTS[1]]
    assert offloaded.moves == IN_TURN


def test_texts_are_not_encoded_ahead_by_encoders_that_stay_on_the_device():
    backbone = RecordingBackbone()
    encoder = PromptEncoder(backbone, make="sd3", cache=None, budget=1e9, upcoming=lambda: PROMPTS[1:])
    encoder(TEXTS)
    assert backbone.encoded == list(TEXTS)
