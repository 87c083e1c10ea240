"""LoRA files of every layout get the right names; files that do not fit raise an error with a code."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import save_file
from support.errors import raises
from support.lora_networks import KINDS, SD3
from support.pipelines import SD3_TARGETS, ZIMAGE_TARGETS, published_checkpoint

from tdmr1_core.models.families import ATTENTION, FAMILIES, JOINT_ATTENTION
from tdmr1_core.models.lora.files import read_lora
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork

pytestmark = pytest.mark.unit

RANK = 4
TARGETS = {
    "sd3": (SD3_TARGETS, JOINT_ATTENTION),
    "zimage": (ZIMAGE_TARGETS, ATTENTION),
}


class Case:
    """A tiny network of a family, and a random LoRA for it in the published layout."""

    def __init__(self, family, folder):
        kind, config = KINDS[family]
        published_targets, targets = TARGETS[family]
        self.network = MetaNetwork(FAMILIES[family], config)
        self.expected = LoraShape(RANK, 2.0 * RANK, targets)
        self.file = folder / f"{family}.ckpt"
        self.weights = published_checkpoint(kind(**config), published_targets, self.file, RANK)

    def read(self, path, **options):
        return read_lora(path, self.network, self.expected, **options)

    def saved(self, path, named, **metadata):
        save_file({key: weight.contiguous() for key, weight in named.items()}, path, metadata=metadata or None)
        return path


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return Case("sd3", tmp_path_factory.mktemp("sd3"))


def same(found, wanted):
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_published_list_gets_the_right_names(case):
    lora = case.read(case.file)
    same(lora.weights, case.weights)
    assert lora.shape == case.expected
    assert lora.record["sha256"] == hashlib.sha256(case.file.read_bytes()).hexdigest()
    assert lora.record["weights"] == len(case.weights)
    assert "matched by position" in lora.layout


def test_tensor_counts_of_the_full_size_networks():
    """Z-Image: 8 tensors in each of 34 blocks. SD3.5: 16 in each of 24 blocks, without the last block's text output."""
    medium = SD3 | {"num_layers": 24, "num_attention_heads": 24, "dual_attention_layers": tuple(range(13))}
    for family, config, count in (("zimage", {}, 272), ("sd3", medium, 382)):
        names = MetaNetwork(FAMILIES[family], config).lora(LoraShape(32, 64.0, FAMILIES[family].targets))
        assert len(names) == count
        assert not any(".attn2." in name for name in names)


def test_an_adapter_scale_multiplies_the_b_matrices(case):
    lora = case.read(case.file, scale=0.125)
    for name, weight in case.weights.items():
        assert torch.equal(lora.weights[name], weight * (0.125 if ".lora_B." in name else 1))
    assert "0.125" in str(lora)


def test_diffusers_and_peft_files_are_read(case, tmp_path):
    packed = {"transformer.r": RANK, "transformer.lora_alpha": 3, "transformer.target_modules": case.expected.targets}
    metadata = {"lora_adapter_metadata": json.dumps(packed)}
    named = {f"transformer.{name}": weight for name, weight in case.weights.items()}
    lora = case.read(case.saved(tmp_path / "pytorch_lora_weights.safetensors", named, **metadata).parent)
    same(lora.weights, case.weights)
    assert lora.shape == LoraShape(RANK, 3.0, tuple(sorted(case.expected.targets)))

    folder = tmp_path / "peft"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 5, "target_modules": ".*"}))
    named = {f"base_model.model.{name}": weight for name, weight in case.weights.items()}
    lora = case.read(case.saved(folder / "adapter_model.safetensors", named).parent)
    same(lora.weights, case.weights)
    assert lora.shape.alpha == 5
    rslora = {"r": RANK, "lora_alpha": 5, "use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(rslora))
    assert case.read(folder).shape.alpha == 5 * RANK**0.5


def kohya(weights, alpha, prefix="lora_unet_"):
    named = {}
    for name, weight in weights.items():
        module, part = name.removesuffix(".weight").rsplit(".", 1)
        flat = prefix + module.replace(".", "_")
        named[f"{flat}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = weight
        named[f"{flat}.alpha"] = torch.tensor(float(alpha))
    return named


def test_kohya_names_with_an_alpha_per_module_are_read(case, tmp_path):
    lora = case.read(case.saved(tmp_path / "kohya.safetensors", kohya(case.weights, 6)))
    same(lora.weights, case.weights)
    assert (lora.shape.rank, lora.shape.alpha) == (RANK, 6)
    assert "kohya" in str(lora)


def test_different_alphas_are_converted_to_one(sd3, tmp_path):
    named = kohya(sd3.weights, 6)
    changed = "transformer_blocks.1.attn.to_k"
    named[f"lora_unet_{changed.replace('.', '_')}.alpha"] = torch.tensor(3.0)
    lora = sd3.read(sd3.saved(tmp_path / "kohya.safetensors", named))
    assert lora.shape.alpha == 6
    assert torch.equal(lora.weights[f"{changed}.lora_B.weight"], sd3.weights[f"{changed}.lora_B.weight"] / 2)


@pytest.mark.parametrize(
    ("family", "fused", "parts"),
    [
        ("sd3", "joint_blocks.0.x_block.attn.qkv", [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]),
        ("sd3", "joint_blocks.0.context_block.attn.qkv", [f"transformer_blocks.0.attn.add_{p}_proj" for p in "qkv"]),
        ("sd3", "joint_blocks.1.x_block.attn.proj", ["transformer_blocks.1.attn.to_out.0"]),
        ("zimage", "noise_refiner.0.attention.qkv", [f"noise_refiner.0.attention.to_{part}" for part in "qkv"]),
        ("zimage", "layers.0.attention.out", ["layers.0.attention.to_out.0"]),
    ],
)
def test_fused_modules_of_the_original_code_are_split(tmp_path, family, fused, parts):
    case = Case(family, tmp_path)
    rows = case.weights[f"{parts[0]}.lora_B.weight"].shape[0]
    down, up = torch.randn(RANK, 16), torch.randn(len(parts) * rows, RANK)
    for key in (f"lora_unet_{fused.replace('.', '_')}", f"diffusion_model.{fused}"):
        named = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        lora = case.read(case.saved(tmp_path / "fused.safetensors", named))
        assert {name.rsplit(".lora_", 1)[0] for name in lora.weights} == set(parts)
        # The parts' updates, concatenated by rows, are the update of the fused weight.
        added = [lora.weights[f"{p}.lora_B.weight"] @ lora.weights[f"{p}.lora_A.weight"] for p in parts]
        torch.testing.assert_close(torch.cat(added), up @ down)


def test_a_file_without_alpha_needs_the_setting(sd3, tmp_path):
    file = sd3.saved(tmp_path / "lora.safetensors", {f"transformer.{n}": w for n, w in sd3.weights.items()})
    with raises("lora-alpha", path=str(file), rank=RANK):
        sd3.read(file)
    assert sd3.read(file, alpha=7.0).shape.alpha == 7
    assert sd3.read(file, alpha="rank").shape.alpha == RANK


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_pickle_payload_is_refused_and_not_executed(sd3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "payload.ckpt"
    torch.save({"ema_parameters": list(sd3.weights.values()), "extra": Payload()}, file)
    with raises("lora-unreadable", object="posix.mkdir"):
        sd3.read(file)
    assert not (tmp_path / "harmed").exists()


def test_truncated_files_are_refused(sd3, tmp_path):
    whole = sd3.file.read_bytes()
    safe = sd3.saved(tmp_path / "whole.safetensors", kohya(sd3.weights, 6)).read_bytes()
    for name, content in [
        ("a.ckpt", whole[: len(whole) // 2]),
        ("b.ckpt", b""),
        ("text.ckpt", b"hello"),
        ("c.safetensors", safe[:-100]),
    ]:
        (tmp_path / name).write_bytes(content)
        with raises("lora-unreadable", path=str(tmp_path / name)) as caught:
            sd3.read(tmp_path / name)
        assert "download" in caught.value.hint


WRONG_LISTS = {
    "one tensor less": ("lora-mismatch", {"tensors": 29, "expected": 30}, lambda tensors: tensors[:-1]),
    "wider": (
        "lora-mismatch",
        {"position": 0, "shape": [4, 17], "expected": [4, 16]},
        lambda tensors: [torch.zeros(RANK, 17), *tensors[1:]],
    ),
    "rank 5": ("lora-mismatch", {"rank": 5, "expected": 4}, lambda tensors: [torch.zeros(5, 16), *tensors[1:]]),
    "not finite": ("lora-unreadable", {}, lambda tensors: [torch.full((RANK, 16), torch.nan), *tensors[1:]]),
    "empty": ("lora-keys", {}, lambda tensors: []),
}


@pytest.mark.parametrize(("code", "values", "change"), WRONG_LISTS.values(), ids=WRONG_LISTS)
def test_lists_that_do_not_fit_are_refused(sd3, tmp_path, code, values, change):
    file = tmp_path / "wrong.ckpt"
    torch.save({"ema_parameters": change(list(sd3.weights.values()))}, file)
    with raises(code, path=str(file), **values) as caught:
        sd3.read(file)
    assert caught.value.hint


FIRST = "lora_unet_transformer_blocks_0_attn_to_q"
MODULE = "transformer_blocks.0.attn.to_q"
OTHER = "lora_unet_double_blocks_0_img.lora_up.weight"
WRONG_KEYS = {
    "unknown module": ("lora-mismatch", {"unknown": 1}, {OTHER: torch.zeros(2, 2)}),
    "half of a LoRA": ("lora-keys", {"module": MODULE}, {f"{FIRST}.lora_up.weight": None}),
    "different ranks": (
        "lora-unsupported",
        {"shapes": [[2, 16], [16, 4]]},
        {f"{FIRST}.lora_down.weight": torch.zeros(2, 16)},
    ),
    "wider": (
        "lora-mismatch",
        {"module": MODULE, "shape": [16, 17], "expected": [16, 16]},
        {f"{FIRST}.lora_down.weight": torch.zeros(RANK, 17)},
    ),
    "not linear": (
        "lora-unsupported",
        {"module": MODULE, "shapes": [[4, 16], [16]]},
        {f"{FIRST}.lora_up.weight": torch.zeros(16)},
    ),
    "text encoder": (
        "lora-unsupported",
        {"key": "lora_te1_layers_0.lora_up.weight"},
        {"lora_te1_layers_0.lora_up.weight": torch.zeros(2, 2)},
    ),
    "DoRA": ("lora-unsupported", {"method": "DoRA"}, {f"{FIRST}.dora_scale": torch.zeros(2)}),
    "unknown key": ("lora-keys", {"unknown": ["something"]}, {"something": torch.zeros(2)}),
}


@pytest.mark.parametrize(("code", "values", "changes"), WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_named_files_that_do_not_fit_are_refused(sd3, tmp_path, code, values, changes):
    named = {key: weight for key, weight in (kohya(sd3.weights, 6) | changes).items() if weight is not None}
    file = sd3.saved(tmp_path / "wrong.safetensors", named)
    with raises(code, path=str(file), **values) as caught:
        sd3.read(file)
    assert caught.value.hint


def test_a_lora_of_another_family_is_refused(tmp_path):
    sd3, zimage = Case("sd3", tmp_path), Case("zimage", tmp_path)
    named = {f"transformer.{name}": weight for name, weight in zimage.weights.items()}
    with raises("lora-mismatch", unknown=12, network="SD3Transformer2DModel"):
        sd3.read(sd3.saved(tmp_path / "other.safetensors", named))
    with raises("lora-mismatch", tensors=24, expected=30):
        sd3.read(zimage.file)


def test_missing_files_are_refused(sd3, tmp_path):
    for path in (tmp_path / "nothing.ckpt", tmp_path):
        with raises("lora-missing"):
            sd3.read(path)
