"""LoRA files of every layout land on the right names, and one that does not fit is refused in a sentence."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch
from diffusers import SD3Transformer2DModel, ZImageTransformer2DModel
from safetensors.torch import save_file
from support.pipelines import SD3_TARGETS, ZIMAGE_TARGETS, published_checkpoint

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import ATTENTION, FAMILIES, JOINT_ATTENTION
from tdmr1_core.models.lora.files import read_lora
from tdmr1_core.models.meta_network import MetaNetwork
from tdmr1_core.models.roles import LoraShape

pytestmark = pytest.mark.unit

RANK = 4
SD3 = {
    "sample_size": 4,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 8,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
ZIMAGE = {
    "in_channels": 4,
    "dim": 16,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 12,
    "axes_dims": [4, 2, 2],
    "axes_lens": [16, 8, 8],
}
KINDS = {
    "sd3": (SD3Transformer2DModel, SD3, SD3_TARGETS, JOINT_ATTENTION),
    "zimage": (ZImageTransformer2DModel, ZIMAGE, ZIMAGE_TARGETS, ATTENTION),
}


class Case:
    """A family's tiny network, and a random LoRA on it in the authors' layout."""

    def __init__(self, family, folder):
        kind, config, published_targets, targets = KINDS[family]
        self.skeleton = MetaNetwork(FAMILIES[family], config)
        self.expected = LoraShape(RANK, 2.0 * RANK, targets)
        self.file = folder / f"{family}.ckpt"
        self.weights = published_checkpoint(kind(**config), published_targets, self.file, RANK)

    def read(self, path, **options):
        return read_lora(path, self.skeleton, self.expected, **options)

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


def test_the_published_layout_lands_on_the_right_names(case):
    lora = case.read(case.file)
    same(lora.weights, case.weights)
    assert lora.shape == case.expected
    assert lora.record["sha256"] == hashlib.sha256(case.file.read_bytes()).hexdigest()
    assert lora.record["weights"] == len(case.weights)
    assert "changed places could not be noticed" in str(lora)


def test_the_published_loras_of_the_full_size_networks():
    """Z-Image's has 8 tensors in each of 34 blocks; SD3.5's 16 in 24, but for the last block's text output."""
    medium = SD3 | {"num_layers": 24, "num_attention_heads": 24, "dual_attention_layers": tuple(range(13))}
    for family, config, count in (("zimage", {}, 272), ("sd3", medium, 382)):
        names = MetaNetwork(FAMILIES[family], config).lora(LoraShape(32, 64.0, FAMILIES[family].targets))
        assert len(names) == count
        assert not any(".attn2." in name for name in names)


def test_an_adapter_scale_is_folded_into_b(case):
    lora = case.read(case.file, scale=0.125)
    for name, weight in case.weights.items():
        assert torch.equal(lora.weights[name], weight * (0.125 if ".lora_B." in name else 1))
    assert "0.125" in str(lora)


def test_diffusers_and_peft_files(case, tmp_path):
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


def test_kohyas_names_with_their_own_alpha(case, tmp_path):
    lora = case.read(case.saved(tmp_path / "kohya.safetensors", kohya(case.weights, 6)))
    same(lora.weights, case.weights)
    assert (lora.shape.rank, lora.shape.alpha) == (RANK, 6)
    assert "kohya" in str(lora)


def test_alphas_that_differ_become_one(sd3, tmp_path):
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
def test_fused_modules_of_the_models_own_code(tmp_path, family, fused, parts):
    case = Case(family, tmp_path)
    rows = case.weights[f"{parts[0]}.lora_B.weight"].shape[0]
    down, up = torch.randn(RANK, 16), torch.randn(len(parts) * rows, RANK)
    for key in (f"lora_unet_{fused.replace('.', '_')}", f"diffusion_model.{fused}"):
        named = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        lora = case.read(case.saved(tmp_path / "fused.safetensors", named))
        assert {name.rsplit(".lora_", 1)[0] for name in lora.weights} == set(parts)
        # What the LoRA adds to the fused weight is what it adds to the parts, one below another.
        added = [lora.weights[f"{p}.lora_B.weight"] @ lora.weights[f"{p}.lora_A.weight"] for p in parts]
        torch.testing.assert_close(torch.cat(added), up @ down)


def test_a_file_that_does_not_say_its_alpha(sd3, tmp_path):
    file = sd3.saved(tmp_path / "lora.safetensors", {f"transformer.{n}": w for n, w in sd3.weights.items()})
    with pytest.raises(Tdmr1Error, match="does not say its alpha") as caught:
        sd3.read(file)
    assert f"has {RANK}, its rank" in caught.value.hint
    assert sd3.read(file, alpha=7.0).shape.alpha == 7
    assert sd3.read(file, alpha="rank").shape.alpha == RANK


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_pickle_payload_is_refused_and_does_nothing(sd3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "payload.ckpt"
    torch.save({"ema_parameters": list(sd3.weights.values()), "extra": Payload()}, file)
    with pytest.raises(Tdmr1Error, match=r"holds more than tensors.*mkdir"):
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
        with pytest.raises(Tdmr1Error, match=r"cut short|not a readable") as caught:
            sd3.read(tmp_path / name)
        assert "download" in caught.value.hint


def wrong_lists(case):
    tensors = list(case.weights.values())
    wider = [torch.zeros(RANK, 17), *tensors[1:]]
    return {
        "holds 29 tensors, but a LoRA on this": tensors[:-1],
        r"tensor 0 of .* is \(4, 17\), but": wider,
        "rank 5, not 4": [torch.zeros(5, 16), *tensors[1:]],
        "not finite": [torch.full((RANK, 16), torch.nan), *tensors[1:]],
        "neither a LoRA nor a list": [],
    }


@pytest.mark.parametrize("said", ["holds 29 tensors", "tensor 0", "rank 5", "not finite", "neither a LoRA"])
def test_lists_that_do_not_fit(sd3, tmp_path, said):
    ((pattern, tensors),) = [item for item in wrong_lists(sd3).items() if item[0].startswith(said)]
    torch.save({"ema_parameters": tensors}, tmp_path / "wrong.ckpt")
    with pytest.raises(Tdmr1Error, match=pattern) as caught:
        sd3.read(tmp_path / "wrong.ckpt")
    assert caught.value.hint


def test_named_files_that_do_not_fit(sd3, tmp_path):
    good = kohya(sd3.weights, 6)
    first = "lora_unet_transformer_blocks_0_attn_to_q"
    wrong = {
        "does not fit: 1 of its modules": good | {"lora_unet_double_blocks_0_img.lora_up.weight": torch.zeros(2, 2)},
        "half of a LoRA": {key: weight for key, weight in good.items() if key != f"{first}.lora_up.weight"},
        "different ranks": good | {f"{first}.lora_down.weight": torch.zeros(2, 16)},
        "the model needs": good | {f"{first}.lora_down.weight": torch.zeros(RANK, 17)},
        r"has the shapes \(4, 16\) and \(16,\)": good | {f"{first}.lora_up.weight": torch.zeros(16)},
        "changes the text encoder": good | {"lora_te1_layers_0.lora_up.weight": torch.zeros(2, 2)},
        "no plain LoRA but DoRA": good | {f"{first}.dora_scale": torch.zeros(2)},
        "1 unknown keys": good | {"something": torch.zeros(2)},
    }
    for said, named in wrong.items():
        with pytest.raises(Tdmr1Error, match=said) as caught:
            sd3.read(sd3.saved(tmp_path / "wrong.safetensors", named))
        assert caught.value.hint


def test_a_lora_of_another_family(tmp_path):
    sd3, zimage = Case("sd3", tmp_path), Case("zimage", tmp_path)
    named = {f"transformer.{name}": weight for name, weight in zimage.weights.items()}
    with pytest.raises(Tdmr1Error, match="12 of its modules are not in the SD3Transformer2DModel, such as"):
        sd3.read(sd3.saved(tmp_path / "other.safetensors", named))
    with pytest.raises(Tdmr1Error, match="holds 24 tensors, but a LoRA on this SD3Transformer2DModel has 30"):
        sd3.read(zimage.file)


def test_files_that_are_not_there(sd3, tmp_path):
    for path in (tmp_path / "nothing.ckpt", tmp_path):
        with pytest.raises(Tdmr1Error, match="there is no LoRA file"):
            sd3.read(path)
