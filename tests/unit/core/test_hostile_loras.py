"""LoRA files that are none, or worse: refused with a sentence, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora_files import WEIGHT_FILE, read_lora

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["lora.safetensors", WEIGHT_FILE, "lora.bin", "lora.ckpt"])
@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickle_is_refused_and_not_read(tmp_path, name, how):
    mark, path = tmp_path / "unpickled", tmp_path / name

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    path.write_bytes(pickle.dumps(Payload())) if how == "pickle" else torch.save(Payload(), path)
    with pytest.raises(Tdmr1Error, match="is not a readable safetensors file"):
        read_lora(path if name != WEIGHT_FILE else tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, b"\x00" * 8, (1 << 62).to_bytes(8, "little") + b"{}", b"{" * 99])
def test_a_header_that_lies_is_refused(tmp_path, header):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(header)
    with pytest.raises(Tdmr1Error, match="is not a readable safetensors file"):
        read_lora(path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "not json",
        "[]",
        "{}",
        json.dumps({"transformer.r": 4}),
        json.dumps({"transformer.r": 4, "transformer.target_modules": ["to_q"]}),
        json.dumps({"transformer.r": "many", "transformer.target_modules": ["to_q"], "transformer.lora_alpha": 4}),
        json.dumps({"transformer.r": 4, "transformer.target_modules": 3, "transformer.lora_alpha": 4}),
        json.dumps({"transformer.r": None, "transformer.target_modules": [], "transformer.lora_alpha": []}),
    ],
)
def test_metadata_that_says_nothing_is_refused(tmp_path: Path, metadata):
    path = tmp_path / "lora.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata and {"lora_adapter_metadata": metadata})
    with pytest.raises(Tdmr1Error, match="does not say its rank, alpha and target modules"):
        read_lora(path)
