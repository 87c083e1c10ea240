"""LoRA files with the names of other tools change the same weights by the same amount, or are refused by name."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders.single_file_utils import swap_scale_shift
from safetensors.torch import save_file
from support.errors import raises
from support.lora_networks import KINDS

from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.lora.files import LoraFile, read_lora
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork

pytestmark = pytest.mark.unit

RANK = 4
NETWORKS = {name: MetaNetwork(FAMILIES[name], config) for name, (_, config) in KINDS.items()}


def thirds(update):
    return update.chunk(3)


def whole(update):
    return [update]


def swapped(update):
    return [swap_scale_shift(update, dim=0)]


BLOCK, LAST = "transformer_blocks.0", "transformer_blocks.1"
ORIGINAL = {
    "sd3": {
        "joint_blocks.0.x_block.attn.qkv": (thirds, [f"{BLOCK}.attn.to_{p}" for p in "qkv"]),
        "joint_blocks.0.x_block.attn2.qkv": (thirds, [f"{BLOCK}.attn2.to_{p}" for p in "qkv"]),
        "joint_blocks.0.context_block.attn.qkv": (thirds, [f"{BLOCK}.attn.add_{p}_proj" for p in "qkv"]),
        "joint_blocks.0.x_block.adaLN_modulation.1": (whole, [f"{BLOCK}.norm1.linear"]),
        "joint_blocks.0.context_block.adaLN_modulation.1": (whole, [f"{BLOCK}.norm1_context.linear"]),
        "joint_blocks.1.x_block.adaLN_modulation.1": (whole, [f"{LAST}.norm1.linear"]),
        "joint_blocks.1.context_block.adaLN_modulation.1": (swapped, [f"{LAST}.norm1_context.linear"]),
        "joint_blocks.0.context_block.mlp.fc1": (whole, [f"{BLOCK}.ff_context.net.0.proj"]),
        "context_embedder": (whole, ["context_embedder"]),
        "t_embedder.mlp.0": (whole, ["time_text_embed.timestep_embedder.linear_1"]),
        "y_embedder.mlp.2": (whole, ["time_text_embed.text_embedder.linear_2"]),
        "final_layer.linear": (whole, ["proj_out"]),
        "final_layer.adaLN_modulation.1": (swapped, ["norm_out.linear"]),
    },
    "zimage": {
        "layers.0.attention.qkv": (thirds, [f"layers.0.attention.to_{p}" for p in "qkv"]),
        "layers.0.attention.out": (whole, ["layers.0.attention.to_out.0"]),
        "layers.0.attention.to_out": (whole, ["layers.0.attention.to_out.0"]),
        "layers.0.adaLN_modulation.0": (whole, ["layers.0.adaLN_modulation.0"]),
        "x_embedder": (whole, ["all_x_embedder.2-1"]),
        "final_layer.linear": (whole, ["all_final_layer.2-1.linear"]),
        "final_layer.adaLN_modulation.1": (whole, ["all_final_layer.2-1.adaLN_modulation.1"]),
        "cap_embedder.1": (whole, ["cap_embedder.1"]),
    },
}
NAMES = [(family, name) for family, names in ORIGINAL.items() for name in names]


def pair(family, modules, rank=RANK):
    """Random matrices A (rank, in) and B (out, rank) for a layer with the rows of all these modules."""
    shapes = [NETWORKS[family].linears[module] for module in modules]
    return torch.randn(rank, shapes[0][1]), torch.randn(sum(rows for rows, _ in shapes), rank)


def read(family, path, tensors, **options) -> LoraFile:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return read_lora(path, NETWORKS[family], LoraShape(RANK, 8.0, FAMILIES[family].targets), **options)


def update(lora, module):
    """The change of the weight of a module."""
    scale = lora.shape.alpha / lora.shape.rank
    return scale * lora.weights[f"{module}.lora_B.weight"] @ lora.weights[f"{module}.lora_A.weight"]


def named(name, down, up, alpha, style="kohya"):
    """The tensors of a LoRA with the key names of kohya, ComfyUI or PEFT."""
    if style == "kohya":
        key, parts = f"lora_unet_{name.replace('.', '_')}", ("lora_down", "lora_up")
    else:
        key, parts = f"diffusion_model.{name}", ("lora_A", "lora_B")
    return {f"{key}.{parts[0]}.weight": down, f"{key}.{parts[1]}.weight": up, f"{key}.alpha": torch.tensor(alpha)}


@pytest.mark.parametrize("style", ["kohya", "comfyui"])
@pytest.mark.parametrize(("family", "name"), NAMES)
def test_modules_of_the_original_code(tmp_path, family, name, style):
    split, modules = ORIGINAL[family][name]
    down, up = pair(family, modules)
    lora = read(family, tmp_path / "lora.safetensors", named(name, down, up, 3.0, style))
    for module, wanted in zip(modules, split(3 / RANK * up @ down), strict=True):
        torch.testing.assert_close(update(lora, module), wanted, rtol=1e-5, atol=1e-5)
    assert {key.rsplit(".lora_", 1)[0] for key in lora.weights} == set(modules)


PREFIXES = (
    *("", "transformer.", "base_model.model.", "transformer.base_model.model.", "base_model.model.transformer."),
    *("diffusion_model.", "model.diffusion_model.", "module.", "_orig_mod.", "module._orig_mod.transformer."),
    *(
        "_fsdp_wrapped_module.",
        "unet.",
        "lora_unet_",
        "lora_unet__",
        "lycoris_",
        "lora_transformer_",
        "lora_unet__orig_mod_",
    ),
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("family", "module"), [("sd3", "transformer_blocks.0.attn.to_q"), ("zimage", "layers.0.attention.to_q")]
)
def test_prefixes_and_wrappers(tmp_path, family, module, prefix):
    down, up = pair(family, [module])
    block, rest = module.split(".0.")
    spellings = [
        module,
        f"{block}.0._orig_mod.{rest}",
        f"{block}.0._fsdp_wrapped_module._checkpoint_wrapped_module.{rest}",
    ]
    if "lora" in prefix or "lycoris" in prefix:
        spellings = [spelling.replace(".", "_") for spelling in spellings]
    for spelling in spellings:
        key = prefix + spelling
        tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
        lora = read(family, tmp_path / "lora.safetensors", tensors)
        torch.testing.assert_close(update(lora, module), 2 / RANK * up @ down)


KEYS = (
    *("lora_A.weight lora_B.weight", "lora_A.default.weight lora_B.default.weight", "lora_down.weight lora_up.weight"),
    *("lora.down.weight lora.up.weight", "lora_linear_layer.down.weight lora_linear_layer.up.weight"),
    "lora_A.my-adapter.weight lora_B.my-adapter.weight",
)


@pytest.mark.parametrize("keys", KEYS)
def test_names_of_the_two_matrices(tmp_path, keys):
    module = "transformer_blocks.0.attn.to_q"
    down, up = pair("sd3", [module])
    tensors = {f"{module}.{key}": tensor for key, tensor in zip(keys.split(), (down, up), strict=True)}
    lora = read("sd3", tmp_path / "lora.safetensors", tensors, alpha="rank")
    torch.testing.assert_close(update(lora, module), up @ down)


def test_names_of_early_diffusers(tmp_path):
    module = "transformer_blocks.0.attn.to_out.0"
    down, up = pair("sd3", [module])
    key = "transformer_blocks.0.attn.processor.to_out_lora"
    lora = read("sd3", tmp_path / "a.safetensors", {f"{key}.down.weight": down, f"{key}.up.weight": up}, alpha="rank")
    torch.testing.assert_close(update(lora, module), up @ down)


def test_ranks_and_alphas_of_single_modules(tmp_path):
    modules = {"layers.0.attention.to_q": (2, 1.0), "layers.0.attention.to_k": (5, 10.0), "cap_embedder.1": (3, 3.0)}
    tensors, wanted = {}, {}
    for module, (rank, alpha) in modules.items():
        down, up = pair("zimage", [module], rank)
        tensors |= named(module, down, up, alpha)
        wanted[module] = alpha / rank * up @ down
    lora = read("zimage", tmp_path / "lora.safetensors", tensors)
    assert lora.shape.rank == 5
    for module, change in wanted.items():
        torch.testing.assert_close(update(lora, module), change, rtol=1e-5, atol=1e-5)


def test_a_module_without_alpha_has_the_scale_1_if_others_have_one(tmp_path):
    first, second = "layers.0.attention.to_q", "layers.0.attention.to_k"
    pairs = {module: pair("zimage", [module]) for module in (first, second)}
    tensors = named(first, *pairs[first], 1.0) | named(second, *pairs[second], 1.0)
    del tensors["lora_unet_layers_0_attention_to_k.alpha"]
    lora = read("zimage", tmp_path / "lora.safetensors", tensors)
    for module, scale in ((first, 1 / RANK), (second, 1)):
        down, up = pairs[module]
        torch.testing.assert_close(update(lora, module), scale * up @ down)


def test_a_block_diagonal_qkv_keeps_the_rank_of_its_parts(tmp_path):
    modules = [f"layers.0.attention.to_{part}" for part in "qkv"]
    pairs = [pair("zimage", [module]) for module in modules]
    down, up = torch.cat([down for down, _ in pairs]), torch.block_diag(*(up for _, up in pairs))
    lora = read("zimage", tmp_path / "lora.safetensors", named("layers.0.attention.qkv", down, up, 3.0 * RANK))
    assert lora.shape.rank == RANK
    for module, (a, b) in zip(modules, pairs, strict=True):
        torch.testing.assert_close(update(lora, module), b @ a)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("lora_unet_layers_0_attention_qkv", "lora_unet_layers_0_attention_to_q"),
        ("layers.0.attention.to_q", "transformer.layers.0.attention.to_q"),
        ("diffusion_model.layers.0.attention.out", "diffusion_model.layers.0.attention.to_out.0"),
    ],
)
def test_two_loras_for_one_module_are_refused(tmp_path, first, second, reverse):
    tensors = {}
    for key in (first, second):
        rows = 48 if "qkv" in key else 16
        tensors |= {f"{key}.lora_down.weight": torch.ones(2, 16), f"{key}.lora_up.weight": torch.ones(rows, 2)}
    tensors = dict(sorted(tensors.items(), reverse=reverse))
    with raises("lora-unsupported") as caught:
        read("zimage", tmp_path / "lora.safetensors", tensors, alpha="rank")
    assert sorted(key.rsplit(".lora_", 1)[0] for key in caught.value.values["keys"]) == sorted([first, second])


OTHERS = {
    "DoRA": "layers.0.attention.to_q.lora_magnitude_vector",
    "LoKr": "lycoris_layers_0_attention_to_q.lokr_w1",
    "LoHa": "lycoris_layers_0_attention_to_q.hada_w1_a",
    "a difference of weights": "diffusion_model.layers.0.attention.to_q.diff_b",
    "biases": "base_model.model.layers.0.attention.to_q.lora_B.bias",
    "whole weights, such as those of modules_to_save": "base_model.model.cap_embedder.1.weight",
    "a LoRA with a trained scalar": "lycoris_layers_0_attention_to_q.scalar",
}


@pytest.mark.parametrize(("method", "key"), OTHERS.items())
def test_other_methods_are_refused_by_name(tmp_path, method, key):
    tensors = named("layers.0.attention.to_k", *pair("zimage", ["layers.0.attention.to_k"]), 1.0)
    with raises("lora-unsupported", method=method, key=key):
        read("zimage", tmp_path / "lora.safetensors", tensors | {key: torch.ones(3)})


@pytest.mark.parametrize("key", ["lora_te1_layers_0_mlp", "text_encoder.layers.0.mlp", "text_encoder_2.layers.0.mlp"])
def test_parts_for_a_text_encoder_are_ignored_only_knowingly(tmp_path, key):
    module = "layers.0.attention.to_k"
    down, up = pair("zimage", [module])
    tensors = named(module, down, up, 1.0)
    tensors |= {f"{key}.lora_down.weight": torch.ones(2, 3), f"{key}.lora_up.weight": torch.ones(3, 2)}
    with raises("lora-unsupported", key=f"{key}.lora_down.weight"):
        read("zimage", tmp_path / "lora.safetensors", tensors)
    lora = read("zimage", tmp_path / "lora.safetensors", tensors, ignore_text_encoder=True)
    torch.testing.assert_close(update(lora, module), 1 / RANK * up @ down)


def test_a_name_with_diff_is_no_difference_of_weights(tmp_path):
    """`model.diffusion_model.` contains `.diff`."""
    module = "layers.0.attention.to_k"
    down, up = pair("zimage", [module])
    key = f"model.diffusion_model.{module}"
    lora = read(
        "zimage", tmp_path / "a.safetensors", {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, alpha=1.0
    )
    torch.testing.assert_close(update(lora, module), 1 / RANK * up @ down)


def test_a_lora_for_wider_layers_names_the_base(tmp_path):
    tensors = named("layers.0.attention.to_k", torch.ones(2, 17), torch.ones(16, 2), 1.0)
    with raises("lora-mismatch", shape=[16, 17], expected=[16, 16]) as caught:
        read("zimage", tmp_path / "lora.safetensors", tensors)
    assert "base model" in caught.value.hint


def test_folders_and_torch_files(tmp_path):
    module = "layers.0.attention.to_k"
    down, up = pair("zimage", [module])
    tensors = named(module, down, up, 1.0)
    expected = LoraShape(RANK, 8.0, FAMILIES["zimage"].targets)
    inner = tmp_path / "run" / "checkpoint-500"
    inner.mkdir(parents=True)
    for name, content in (("a.bin", tensors), ("b.ckpt", {"state_dict": tensors, "epoch": 3}), ("c.pt", tensors)):
        torch.save(content, inner / name)
        for path in (inner / name, inner, tmp_path / "run"):
            torch.testing.assert_close(
                update(read_lora(path, NETWORKS["zimage"], expected), module), 1 / RANK * up @ down
            )
        (inner / name).unlink()
    torch.save(tensors, inner / "a.bin")
    torch.save(tensors, inner / "b.bin")
    with raises("lora-missing", files=["checkpoint-500/a.bin", "checkpoint-500/b.bin"]):
        read_lora(tmp_path / "run", NETWORKS["zimage"], expected)
    torch.save(tensors | {"epoch": 3}, inner / "a.bin")
    with raises("lora-keys", unknown=["epoch"]):
        read_lora(inner / "a.bin", NETWORKS["zimage"], expected)
