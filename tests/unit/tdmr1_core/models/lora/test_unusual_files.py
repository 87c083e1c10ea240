"""Unusual and damaged LoRA files are read as their training tool defines them, or are refused by name."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.errors import raises
from support.lora_networks import KINDS
from support.lora_updates import Trained, assert_same, read, read_updates, save, tensors, trained

from tdmr1_core.models.lora.metadata import WEIGHT_FILE

pytestmark = pytest.mark.unit

PEFT = "lora_A lora_B"
FIRST = {"sd3": "transformer_blocks.0.attn.to_q", "zimage": "layers.0.attention.to_q"}
WIDE = {"sd3": "transformer_blocks.0.ff.net.2", "zimage": "layers.0.feed_forward.w1"}
MODULE = FIRST["zimage"]
DOTTED_PREFIXES = (
    *("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_model.model."),
    *("transformer.", "diffusion_model.", "model.", "unet."),
)
FLAT_PREFIXES = ("lora_unet_", "lora_unet__", "lycoris_", "lora_transformer_", "_orig_mod_", "_fsdp_wrapped_module_")


@pytest.fixture(params=KINDS)
def family(request):
    return request.param


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_prefixes_in_any_order_and_number(family, tmp_path_factory, data):
    """Wrappers can also be in the middle of a name. After a prefix of kohya, the name has underscores for dots."""
    module = data.draw(st.sampled_from([FIRST[family], WIDE[family]]))
    middle = "".join(data.draw(st.lists(st.sampled_from(DOTTED_PREFIXES[:4]), max_size=2)))
    block, _, rest = module.partition(".0.")
    flat = data.draw(st.lists(st.sampled_from(FLAT_PREFIXES), max_size=3))
    key = f"{block}.0.{'' if flat else middle}{rest}"
    key = "".join(flat) + key.replace(".", "_") if flat else key
    key = "".join(data.draw(st.lists(st.sampled_from(DOTTED_PREFIXES), max_size=3))) + key
    lora = trained(family, module, alpha=3.0)
    path = save(tmp_path_factory.mktemp("lora") / "lora.safetensors", tensors(lora, key))
    assert_same(read_updates(read(family, path)), {module: lora.update})


@pytest.mark.parametrize(
    ("first", "second"),
    permutations(
        [
            "lora_unet_layers_0_attention_to_q",
            "transformer.layers.0.attention.to_q",
            "diffusion_model._orig_mod.layers.0.attention.qkv",
            "lycoris_layers_0_attention_qkv",
        ],
        2,
    ),
)
def test_two_copies_of_one_module_under_any_two_names_are_refused(tmp_path, first, second):
    content = {}
    for key in (first, second):
        names = [f"layers.0.attention.to_{part}" for part in "qkv"] if "qkv" in key else [MODULE]
        content |= tensors(trained("zimage", *names), key, PEFT if key == second else "lora_down lora_up")
    with raises("lora-unsupported", module=MODULE) as caught:
        read("zimage", save(tmp_path / "lora.bin", content), alpha="rank")
    assert {key.split(".lora_")[0] for key in caught.value.values["keys"]} == {first, second}


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_every_floating_point_type_is_converted(family, tmp_path, kind):
    dtype = getattr(torch, kind)
    lora, module = trained(family, FIRST[family], alpha=2.0, rank=4, dtype=dtype), FIRST[family]
    other = trained(family, WIDE[family], alpha=1.0)  # float32 beside it
    content = tensors(lora, f"transformer.{module}", PEFT) | tensors(other, f"transformer.{WIDE[family]}", PEFT)
    lora = read(family, save(tmp_path / "lora.safetensors", content))
    exact = Trained(*(content[f"transformer.{module}.lora_{part}.weight"].double() for part in "AB"), 2.0)
    assert_same(read_updates(lora), {module: exact.update, WIDE[family]: other.update})
    assert all(weight.dtype in (torch.float32, torch.float64) for weight in lora.weights.values())


NO_NUMBERS = {
    "int8": lambda down: down.to(torch.int8),
    "complex64": lambda down: down.to(torch.complex64),
    "bool": lambda down: down.bool(),
    "sparse": lambda down: down.to_sparse(),
    "meta": lambda down: down.to("meta"),
    "float4": lambda down: torch.zeros(down.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
}


@pytest.mark.parametrize("change", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_matrices_without_floating_point_numbers_are_refused(tmp_path, change):
    content = tensors(trained("zimage", MODULE, alpha=1.0), MODULE)
    content[f"{MODULE}.lora_down.weight"] = change(content[f"{MODULE}.lora_down.weight"])
    with raises("lora-unsupported", tensor=f"the key {MODULE}.lora_down.weight"):
        read("zimage", save(tmp_path / "lora.bin", content))


def test_parameters_of_a_module_are_read_without_their_gradient(tmp_path):
    lora = trained("zimage", MODULE, alpha=1.0)
    content = {key: torch.nn.Parameter(tensor) for key, tensor in tensors(lora, MODULE).items()}
    found = read("zimage", save(tmp_path / "lora.bin", content))
    assert not any(weight.requires_grad for weight in found.weights.values())
    assert_same(read_updates(found), {MODULE: lora.update})


@pytest.mark.parametrize("alpha", [torch.tensor([3.0]), torch.tensor(3), torch.tensor([[3.0]], dtype=torch.float64)])
def test_an_alpha_of_any_type_with_one_element(tmp_path, alpha):
    lora = trained("zimage", MODULE, alpha=3.0)
    content = tensors(lora, MODULE) | {f"{MODULE}.alpha": alpha}
    assert_same(read_updates(read("zimage", save(tmp_path / "lora.safetensors", content))), {MODULE: lora.update})


@pytest.mark.parametrize("alpha", [0.0, -2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["tensor", "config", "pattern"])
def test_an_alpha_that_is_not_positive_is_refused(tmp_path, alpha, place):
    """Diffusers scales by 0, where kohya scales by 1; it does not return for a negative tensor (0.42)."""
    content = tensors(trained("zimage", MODULE), MODULE, PEFT)
    content |= {f"{MODULE}.alpha": torch.tensor(alpha)} if place == "tensor" else {}
    config = {
        "tensor": {},
        "config": {"lora_alpha": alpha},
        "pattern": {"lora_alpha": 2, "alpha_pattern": {"to_q": alpha}},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2} | config[place]))
    code = "lora-unreadable" if place == "config" and alpha not in (0.0, -2.0) else "lora-unsupported"
    with raises(code):
        read("zimage", save(tmp_path / "adapter_model.safetensors", content))


ONES = (torch.ones(2, 16), torch.ones(16, 2))
SHAPES = {
    "rank-0": ("zimage", torch.ones(0, 16), torch.ones(16, 0), "lora-unsupported"),
    "convolution": ("zimage", torch.ones(2, 16, 1, 1), torch.ones(16, 2, 1, 1), "lora-unsupported"),
    "transposed": ("zimage", torch.ones(16, 2), torch.ones(2, 16), "lora-unsupported"),
    "swapped": ("wide", torch.ones(42, 2), torch.ones(2, 16), "lora-unsupported"),
    "other-width": ("zimage", torch.ones(2, 24), torch.ones(24, 2), "lora-mismatch"),
    "nan": ("zimage", torch.full((2, 16), torch.nan), ONES[1], "lora-unreadable"),
    "infinite": ("zimage", ONES[0], torch.full((16, 2), torch.inf), "lora-unreadable"),
    "scalar": ("zimage", torch.tensor(1.0), torch.tensor(1.0), "lora-unsupported"),
}


@pytest.mark.parametrize(("place", "down", "up", "code"), SHAPES.values(), ids=SHAPES)
def test_matrices_that_are_no_lora_of_a_linear_layer_are_refused(tmp_path, place, down, up, code):
    module = WIDE["zimage"] if place == "wide" else MODULE
    content = tensors(trained("zimage", "cap_embedder.1"), "cap_embedder.1") | tensors(Trained(down, up), module)
    path = save(tmp_path / "lora.safetensors", content)
    with raises(code, **({} if code == "lora-unreadable" else {"module": module})) as caught:
        read("zimage", path, alpha="rank")
    assert ("base model" in caught.value.hint) == (code == "lora-mismatch")


def test_a_whole_network_is_not_a_lora(family, tmp_path):
    kind, config = KINDS[family]
    weights = kind(**config).state_dict()
    for prefix in ("", "model.diffusion_model."):
        content = {f"{prefix}{name}": weight for name, weight in weights.items()}
        content |= {"text_encoders.a.weight": torch.ones(2), "text_encoders.position_ids": torch.arange(4)}
        with raises("lora-keys") as caught:
            read(family, save(tmp_path / "network.safetensors", content))
        assert "whole network" in caught.value.message
        assert "--model-path" in caught.value.hint


FOREIGN = {
    "SDXL": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "FLUX": "transformer.single_transformer_blocks.0.attn.to_q",
    "Wan": "diffusion_model.blocks.0.self_attn.q",
    "Qwen-Image": "transformer_blocks.0.img_mlp.net.0.proj",
}


@pytest.mark.parametrize("key", FOREIGN.values(), ids=FOREIGN)
def test_a_lora_of_another_family_names_its_modules(family, tmp_path, key):
    content = tensors(trained(family, FIRST[family]), FIRST[family]) | tensors(trained(family, FIRST[family]), key)
    with raises("lora-mismatch", module=key, unknown=1) as caught:
        read(family, save(tmp_path / "lora.safetensors", content), alpha="rank")
    assert caught.value.message.endswith(key)


def test_a_flux_lora_of_shared_names_has_other_shapes(tmp_path):
    wide = Trained(torch.ones(2, 24), torch.ones(24, 2))
    with raises("lora-mismatch", shape=[24, 24], expected=[16, 16]) as caught:
        read("sd3", save(tmp_path / "lora.safetensors", tensors(wide, f"transformer.{FIRST['sd3']}")), alpha="rank")
    assert "base model" in caught.value.hint


def test_files_without_loras_are_refused(tmp_path):
    with raises("lora-keys"):
        read("zimage", save(tmp_path / "empty.safetensors", {}))
    with raises("lora-keys"):
        read("zimage", save(tmp_path / "empty.bin", {}))


ENCODERS = (
    *("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoders.clip_l.transformer.text_model.layers.0.fc1"),
    *("clip_g.text_model.layers.0.fc1", "t5xxl.transformer.block.0.layer.0.k", "_orig_mod.text_encoder_2.layers.0.fc1"),
    *("lora_te_layers_0_fc1", "lycoris_te_layers_0_fc1", "base_model.model.text_encoder.layers.0.fc1"),
)


@pytest.mark.parametrize("key", ENCODERS)
def test_a_file_for_text_encoders_only_has_no_lora_of_the_network(tmp_path, key):
    path = save(tmp_path / "encoder.safetensors", tensors(Trained(*ONES), key))
    with raises("lora-unsupported", key=f"{key}.lora_down.weight"):
        read("zimage", path)
    with raises("lora-keys") as caught:
        read("zimage", path, ignore_text_encoder=True)
    assert "text encoders" in caught.value.message


def test_directories_with_several_files(tmp_path):
    lora = trained("zimage", MODULE, alpha=1.0)
    for name in ("b.safetensors", "a.safetensors"):
        save(tmp_path / name, tensors(lora, MODULE))
    with raises("lora-missing", files=["a.safetensors", "b.safetensors"]):
        read("zimage", tmp_path)
    save(tmp_path / WEIGHT_FILE, tensors(lora, MODULE))  # the usual name of diffusers, which reads it too
    assert read("zimage", tmp_path).path.name == WEIGHT_FILE


def test_one_of_several_files_of_a_lora_is_refused(tmp_path):
    names = [f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        save(tmp_path / name, tensors(trained("zimage", MODULE, alpha=1.0), MODULE))
    for path in (tmp_path, tmp_path / names[1]):
        with raises("lora-unsupported", files=2):
            read("zimage", path)


CONFIGS = {
    "rank": ({"r": 3}, "lora-mismatch"),
    "rank-pattern": ({"rank_pattern": {"attention.to_q": 5}}, "lora-mismatch"),
    "damaged-pattern": ({"alpha_pattern": {"to_q(": 3}}, "lora-unreadable"),
    "rslora-text": ({"use_rslora": "false"}, "lora-unreadable"),
    "replication": ({"layer_replication": [[0, 1]]}, "lora-unsupported"),
    "saved": ({"modules_to_save": ["cap_embedder"]}, "lora-unsupported"),
    "bias": ({"bias": "all"}, "lora-unsupported"),
    "parameters": ({"target_parameters": ["w"]}, "lora-unsupported"),
    "transposed": ({"fan_in_fan_out": True}, "lora-unsupported"),
    "lora-bias": ({"lora_bias": True}, "lora-unsupported"),
    "future": ({"use_future_lora": True}, "lora-unsupported"),
    **{method: ({"peft_type": method}, "lora-unsupported") for method in ("LOHA", "LOKR", "OFT", "IA3", "VERA", "HRA")},
}


@pytest.mark.parametrize(("changes", "code"), CONFIGS.values(), ids=CONFIGS)
def test_adapter_configs_that_contradict_the_file(tmp_path, changes, code):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2} | changes))
    save(tmp_path / "adapter_model.safetensors", tensors(trained("zimage", MODULE), f"base_model.model.{MODULE}", PEFT))
    with raises(code) as caught:
        read("zimage", tmp_path)
    if code != "lora-mismatch":
        assert str(next(iter(changes.values()))) in caught.value.message or next(iter(changes)) in caught.value.message


@pytest.mark.parametrize(
    "key", [f"base_model.model.{MODULE}", f"transformer._orig_mod.{MODULE}", "lora_unet_layers_0_attention_to_q"]
)
@pytest.mark.parametrize(
    "pattern", ["to_q", r"layers\.\d+\.attention\.to_[qk]", "^layers.0.attention.to_q", "attention.to_q"]
)
def test_patterns_of_the_adapter_config_match_any_spelling_of_a_name(tmp_path, key, pattern):
    config = {"r": 8, "lora_alpha": 1, "rank_pattern": {pattern: 2}, "alpha_pattern": {pattern: 6, "to_k": 9}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True, "exclude_modules": ["x"]}))
    lora = trained("zimage", MODULE, alpha=6 * 2**0.5)
    content = tensors(lora, key, PEFT)
    content.pop(f"{key}.alpha")
    path = save(tmp_path / "adapter_model.safetensors", content)
    assert_same(read_updates(read("zimage", path)), {MODULE: lora.update})


METHODS = {
    "DoRA": "lora_magnitude_vector.weight",
    "LoKr": "lokr_w1_a",
    "LoHa": "hada_w2_b",
    "OFT": "oft_R.weight",
    "VeRA": "vera_lambda_b",
    "IA3": "ia3_l",
    "GLoRA": "a1.weight",
    "Tucker-decomposed LoRA": "lora_mid.weight",
    "a difference of weights": "diff",
}


@pytest.mark.parametrize("prefix", ["lycoris_layers_0_attention_to_q", f"base_model.model.{MODULE}"])
@pytest.mark.parametrize(("method", "part"), METHODS.items())
def test_files_of_other_methods_are_named(tmp_path, prefix, method, part):
    """Also if no key of the file is one of a LoRA."""
    for others in ({}, tensors(trained("zimage", "cap_embedder.1"), "cap_embedder.1")):
        path = save(tmp_path / "lora.safetensors", others | {f"{prefix}.{part}": torch.ones(3)})
        with raises("lora-unsupported", method=method):
            read("zimage", path, alpha="rank")
