"""Prompts are encoded once, cached in memory or on disk, with the text encoders on the device only when needed."""

from __future__ import annotations

import errno
import os
import shutil
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

from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.memory import encoder_identity
from tdmr1_core.models.sd3 import SD3Backbone
from tdmr1_core.stages.prompt_encoder import PromptEncoder

pytestmark = pytest.mark.unit

TEXTS = PROMPTS[1:3]


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
    encoder = PromptEncoder(backbone, make="sd3", cache=None, most=2)
    one, two, three = PROMPTS[1:]
    requests = (([one, two], [one, two]), ([one], []), ([three], [three]), ([one], []), ([two], [two]))
    for texts, encoded in (*requests, ([one, two, three], [three])):
        backbone.encoded.clear()
        assert len(encoder(texts).embeddings) == len(texts)
        assert backbone.encoded == encoded


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "texts").write_text("a file, not a folder")
    with raises("not-writable", path=str(tmp_path / "texts")) as caught:
        PromptEncoder(RecordingBackbone(), make="sd3", cache=tmp_path / "texts", budget=1e9)(TEXTS)
    assert "memory.prompt_cache" in caught.value.hint


def test_text_encoders_are_moved_to_the_device_for_new_texts_only(monkeypatch):
    backbone = RecordingBackbone()
    moved: list[str] = []
    denoiser = nn.Linear(1, 1)
    monkeypatch.setattr(backbone.pipeline.text_encoder, "to", lambda where: moved.append(f"encoder to {where}"))
    monkeypatch.setattr(denoiser, "to", lambda where: moved.append(f"denoiser to {where}"))
    backbone.device = torch.device("meta")
    encoder = PromptEncoder(backbone, make="sd3", cache=None, instead_of=[denoiser])
    encoder.encode_unconditional()
    assert backbone.encoded == [""]
    for _ in range(2):
        encoder(TEXTS)
    assert backbone.encoded == ["", *TEXTS]
    in_turn = ["denoiser to cpu", "encoder to meta", "encoder to cpu", "denoiser to meta"]
    assert moved == in_turn * 2, "once for the empty prompt, and once for both texts"
