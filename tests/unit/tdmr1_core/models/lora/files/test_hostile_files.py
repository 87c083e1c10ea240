"""Malformed and malicious LoRA files are refused, and no code in them is executed."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.errors import raises

from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.lora.files import LoraFile, read_lora
from tdmr1_core.models.lora.metadata import WEIGHT_FILE
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork

pytestmark = pytest.mark.unit

NETWORK = {
    "sample_size": 4,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 8,
}
MODULE = "transformer_blocks.0.attn.to_q"


def read(path: Path) -> LoraFile:
    return read_lora(path, MetaNetwork(FAMILIES["sd3"], NETWORK), LoraShape(4, 8.0, ("attn.to_q",)))


@pytest.mark.parametrize("name", ["lora.safetensors", WEIGHT_FILE, "lora.bin", "lora.ckpt"])
@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_is_refused_and_not_read(tmp_path, name, how):
    mark, path = tmp_path / "unpickled", tmp_path / name

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    path.write_bytes(pickle.dumps(Payload())) if how == "pickle" else torch.save(Payload(), path)
    with raises("lora-unreadable", path=str(path)):
        read(path if name != WEIGHT_FILE else tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, b"\x00" * 8, (1 << 62).to_bytes(8, "little") + b"{}", b"{" * 99])
def test_a_malformed_header_is_refused(tmp_path, header):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(header)
    with raises("lora-unreadable", path=str(path)):
        read(path)


def config(**changed: object) -> str:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["attn.to_q"]} | changed
    return json.dumps({f"transformer.{key}": value for key, value in settings.items()})


def lora(path: Path, metadata: str | None) -> Path:
    """A LoRA for one module of the network."""
    weights = {"lora_A": torch.ones(4, 16), "lora_B": torch.ones(16, 4)}
    named = {f"transformer.{MODULE}.{part}.weight": weight for part, weight in weights.items()}
    save_file(named, path, None if metadata is None else {"lora_adapter_metadata": metadata})
    return path


@pytest.mark.parametrize("metadata", [None, "{}", json.dumps({"transformer.r": 4})])
def test_metadata_without_alpha_is_refused(tmp_path, metadata):
    with raises("lora-alpha", rank=4):
        read(lora(tmp_path / "lora.safetensors", metadata))


@pytest.mark.parametrize(
    "metadata",
    [
        "not json",
        "[]",
        "[" * 100_000,
        config(r="many"),
        config(r=None),
        config(lora_alpha=[]),
        config(lora_alpha="8"),
        config(lora_alpha=float("nan")),
        config(target_modules=3),
        config(target_modules=["attn.to_q", 3]),
    ],
)
def test_malformed_metadata_is_refused(tmp_path, metadata):
    with raises("lora-unreadable", path=str(tmp_path / "lora.safetensors")):
        read(lora(tmp_path / "lora.safetensors", metadata))


def test_valid_metadata_is_read(tmp_path):
    assert read(lora(tmp_path / "lora.safetensors", config())).shape == LoraShape(4, 8.0, ("attn.to_q",))
