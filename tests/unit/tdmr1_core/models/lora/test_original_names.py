"""LoRA files of FLUX.1, FLUX.2, Qwen-Image, Krea 2 and ERNIE-Image change the weights as diffusers' loader does.

Where tdmr1 differs from the loader of diffusers (0.42), it follows the tool that trained the LoRA, or refuses the file:

- Diffusers ignores modules without an error: in kohya files, those of FLUX.1 outside of blocks and the modulations and
  guidance of FLUX.2. It ignores whole files with original names after no known prefix. These are read.
- Diffusers does not swap shift and scale of the last modulation of FLUX.2, although its converter of checkpoints does.
  They are swapped.
- Diffusers raises an error: alphas after `transformer.` for all but FLUX.1, and after `diffusion_model.` for FLUX.2,
  Krea 2 and ERNIE-Image. These are read.
- Alphas beside names of kohya's parts after `transformer.` for FLUX.1: diffusers ignores them. They are applied, as
  ComfyUI does.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders import lora_conversion_utils as conversion
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_krea2_transformer_checkpoint_to_diffusers,
)
from diffusers.utils import logging
from peft import LoraConfig, get_peft_model
from support.errors import raises
from support.lora_networks import ALL_KINDS, FLUX1
from support.lora_updates import (
    FAMILIES,
    NETWORKS,
    Trained,
    assert_same,
    loaded_updates,
    pipeline,
    read,
    read_updates,
    save,
    tensors,
    trained,
)

from tdmr1_core.models.lora.files import read_lora
from tdmr1_core.models.lora.original_names import original_names
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork, build_network

pytestmark = pytest.mark.unit

NEW = ("flux1", "flux2_klein", "qwen_image", "krea2", "ernie_image")
PEFT, KOHYA, NAMED = "lora_A lora_B", "lora_down lora_up", "lora_A.default lora_B.default"
XLABS = re.compile(r"double_blocks\.\d+\.\w+_lora[12]|single_blocks\.\d+\.(qkv|proj)")
COMFY = re.compile(r"single_blocks\.\d+\.linear1_qkv")
FUSED = re.compile(r"single_blocks\.\d+\.linear1")
"""Diffusers splits this layer of FLUX.1 only at the width of the published network."""
BLOCKS = re.compile(r".*blocks\.\d+\..*")
NONE, SOME, ALL = (None,), (0.5, None, 3.0, 8.0, None), (0.5, 3.0, 8.0)
"""The alphas of the modules of a file, repeated."""
RANKS = (2, 1, 3, 5)


@pytest.fixture(scope="module")
def pipelines():
    """A pipeline of diffusers with a tiny network for each family."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield {family: pipeline(family) for family in NEW}
    logging.set_verbosity(before)


def dotted(prefix):
    return lambda name: prefix + name


def flat(prefix):
    return lambda name: prefix + name.replace(".", "_")


def xlabs(prefix):
    def key(name):
        block, part = name.rsplit(".", 1)
        return f"{prefix}{block}.processor.{part if part[-1].isdigit() else f'{part}_lora'}"

    return key


def of_diffusers(family, pattern=".*"):
    """The modules of the network that match, by name: each stands for itself."""
    return {name: (name,) for name in NETWORKS[family].linears if re.fullmatch(pattern, name)}


def original(family, network=None):
    """The original names, and the modules of diffusers that they stand for."""
    linears = (network or NETWORKS[family]).linears
    return {name: source.modules for name, source in original_names(FAMILIES[family].transformer, linears)}


def of_bfl(family, *excluded):
    """The original names without those of other authors and those that an excluded pattern matches."""
    patterns = (XLABS, COMFY, re.compile(r"sformer_blocks.*"), *excluded)
    return {
        name: modules
        for name, modules in original(family).items()
        if not any(each.fullmatch(name) for each in patterns)
    }


def made(family, names, *, alphas):
    """A random LoRA for each name, with its own rank and, for some, alpha."""
    torch.manual_seed(len(names))
    return {
        name: trained(
            family,
            *modules,
            rank=RANKS[number % len(RANKS)],
            alpha=alphas[number % len(alphas)],
        )
        for number, (name, modules) in enumerate(names.items())
    }


def content(loras, key, parts):
    return {name: value for each, lora in loras.items() for name, value in tensors(lora, key(each), parts).items()}


class Layout(NamedTuple):
    """The names of a layout that diffusers loads, with the modules that they stand for."""

    family: str
    names: dict
    key: object
    parts: str
    alphas: tuple = NONE


NO_SWAP = re.compile(r"final_layer\.adaLN_modulation\.1")
NOT_IN_KOHYA = re.compile(rf"guidance_in.*|.*_modulation.*|{NO_SWAP.pattern}")
NOT_IN_BLOCKS = re.compile(rf"(?!{BLOCKS.pattern}).*")
SFORMER = {name: modules for name, modules in original("flux2_klein").items() if name.startswith("sformer_blocks")}
ATTENTION = of_diffusers("flux1", r".*attn\..*")
LAYOUTS = {
    "flux1-diffusers": Layout("flux1", of_diffusers("flux1"), dotted("transformer."), PEFT),
    "flux1-alphas": Layout("flux1", of_diffusers("flux1", BLOCKS.pattern), dotted("transformer."), PEFT, ALL),
    "flux1-kohya": Layout("flux1", of_bfl("flux1", FUSED, NOT_IN_BLOCKS), flat("lora_unet_"), KOHYA, SOME),
    "flux1-comfyui": Layout("flux1", of_bfl("flux1", FUSED, NOT_IN_BLOCKS), dotted("diffusion_model."), KOHYA, SOME),
    "flux1-onetrainer": Layout("flux1", ATTENTION, flat("lora_transformer_"), KOHYA, ALL),
    "flux1-kohya-parts": Layout("flux1", of_diffusers("flux1"), dotted("transformer."), KOHYA),
    "flux1-xlabs": Layout(
        "flux1", {n: m for n, m in original("flux1").items() if XLABS.fullmatch(n)}, xlabs(""), "down up"
    ),
    "flux1-xlabs-comfyui": Layout(
        "flux1",
        {n: m for n, m in original("flux1").items() if XLABS.fullmatch(n)},
        xlabs("diffusion_model."),
        "down up",
    ),
    "flux2-diffusers": Layout("flux2_klein", of_diffusers("flux2_klein"), dotted("transformer."), PEFT),
    "flux2-kohya": Layout("flux2_klein", of_bfl("flux2_klein", NOT_IN_KOHYA), flat("lora_unet_"), KOHYA, SOME),
    "flux2-ai-toolkit": Layout("flux2_klein", of_bfl("flux2_klein", NO_SWAP), dotted("diffusion_model."), PEFT),
    "flux2-peft": Layout("flux2_klein", of_bfl("flux2_klein", NO_SWAP), dotted("base_model.model."), PEFT),
    "flux2-expanded": Layout(
        "flux2_klein", of_diffusers("flux2_klein", BLOCKS.pattern), dotted("diffusion_model."), PEFT
    ),
    "flux2-cut-off": Layout("flux2_klein", SFORMER, dotted("diffusion_model."), PEFT),
    "qwen-diffusers": Layout("qwen_image", of_diffusers("qwen_image"), dotted("transformer."), PEFT),
    "qwen-lightning": Layout("qwen_image", of_diffusers("qwen_image"), dotted(""), KOHYA, SOME),
    "qwen-comfyui": Layout("qwen_image", of_diffusers("qwen_image"), dotted("diffusion_model."), KOHYA, SOME),
    "qwen-comfyui-peft": Layout("qwen_image", of_diffusers("qwen_image"), dotted("diffusion_model."), PEFT, SOME),
    "qwen-adapter": Layout("qwen_image", of_diffusers("qwen_image"), dotted("diffusion_model."), NAMED),
    "qwen-kohya": Layout("qwen_image", of_diffusers("qwen_image"), flat("lora_unet_"), KOHYA, SOME),
    "krea2-diffusers": Layout("krea2", of_diffusers("krea2"), dotted("transformer."), PEFT),
    "krea2-comfyui": Layout("krea2", original("krea2"), dotted("diffusion_model."), PEFT),
    "krea2-ai-toolkit": Layout("krea2", original("krea2"), dotted("base_model.model."), PEFT),
    "krea2-both": Layout("krea2", original("krea2"), dotted("base_model.model.diffusion_model."), PEFT),
    "ernie-diffusers": Layout("ernie_image", of_diffusers("ernie_image"), dotted("transformer."), PEFT),
    "ernie-ai-toolkit": Layout("ernie_image", of_diffusers("ernie_image"), dotted("diffusion_model."), PEFT),
    "ernie-peft": Layout("ernie_image", of_diffusers("ernie_image"), dotted("base_model.model."), PEFT),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_diffusers(pipelines, tmp_path, layout):
    loras = made(layout.family, layout.names, alphas=layout.alphas)
    path = save(tmp_path / "lora.safetensors", content(loras, layout.key, layout.parts))
    wanted = loaded_updates(pipelines[layout.family], path)
    assert wanted.keys() == {module for modules in layout.names.values() for module in modules}
    assert_same(read_updates(read(layout.family, path, alpha="rank")), wanted)


def test_original_names_reach_every_linear_layer():
    for family in ("flux1", "flux2_klein", "krea2"):
        names = of_bfl(family)
        assert sorted(module for modules in names.values() for module in modules) == sorted(NETWORKS[family].linears)


@pytest.mark.parametrize("family", NEW)
def test_names_without_dots_are_not_ambiguous(family):
    names = original(family) | of_diffusers(family)
    assert len({name.replace(".", "_") for name in names}) == len(names)
    assert not original(family).keys() & NETWORKS[family].linears.keys()


CHECKPOINTS = {
    "flux2_klein": convert_flux2_transformer_checkpoint_to_diffusers,
    "krea2": convert_krea2_transformer_checkpoint_to_diffusers,
}
STYLES = {
    "kohya": (flat("lora_unet_"), KOHYA),
    "comfyui": (dotted("diffusion_model."), PEFT),
    "bare": (dotted(""), PEFT),
}


@pytest.mark.parametrize(("key", "parts"), STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("family", CHECKPOINTS)
def test_layers_are_split_as_in_checkpoints(tmp_path, family, key, parts):
    """With alphas, and for all modules: also where diffusers' loader of LoRAs ignores them or does not swap halves."""
    loras = made(family, of_bfl(family), alphas=SOME)
    path = save(tmp_path / "lora.safetensors", content(loras, key, parts))
    converted = CHECKPOINTS[family]({f"{name}.weight": lora.update for name, lora in loras.items()})
    lora = read(family, path)
    assert_same(read_updates(lora), {name.removesuffix(".weight"): update for name, update in converted.items()})
    assert lora.layout == ("kohya's names" if parts == KOHYA else "names of the original code")


def test_modules_of_flux1_outside_of_blocks(pipelines, tmp_path):
    """Diffusers converts them, but names them without `transformer.`, so that its loader ignores them."""
    names = of_bfl("flux1", BLOCKS)
    loras = made("flux1", names, alphas=NONE)
    stored = content(loras, flat("lora_unet_"), KOHYA)
    path = save(tmp_path / "lora.safetensors", stored)
    assert loaded_updates(pipelines["flux1"], path) == {}
    converted = conversion._convert_kohya_flux_lora_to_diffusers(dict(stored))
    pairs = {
        name.removesuffix(".lora_A.weight"): (converted[name.replace("lora_A", "lora_B")], down)
        for name, down in converted.items()
        if "lora_A" in name
    }
    wanted = {name: up.double() @ down.double() for name, (up, down) in pairs.items()}
    assert len(wanted) == len(names) == 10
    found = read_updates(read("flux1", path, alpha="rank"))
    for block in range(FLUX1["num_single_layers"]):  # PEFT cannot select `proj_out` without the `proj_out` of blocks
        assert not found.pop(f"single_transformer_blocks.{block}.proj_out").any()
    assert_same(found, wanted)


@pytest.fixture(scope="module")
def published_flux1():
    """FLUX.1 with the published width and numbers of blocks, on the meta device."""
    return MetaNetwork(FAMILIES["flux1"], {"guidance_embeds": True})


def probed(weights, scale, inputs):
    """The changes of the outputs of each module for random inputs: full updates of wide layers are too large."""
    names = {name.rsplit(".lora_", 1)[0] for name in weights}
    pairs = {name: [weights[f"{name}.lora_{part}.weight"].double() for part in "BA"] for name in names}
    return {name: scale * up @ (down @ inputs[: down.shape[1]]) for name, (up, down) in pairs.items()}


def assert_as_converted(path, network, **options):
    """The file changes the same outputs after diffusers' conversion and in tdmr1."""
    converted = FluxPipeline.lora_state_dict(path)
    assert all(name.startswith("transformer.") for name in converted)
    inputs = torch.randn(20000, 3, dtype=torch.float64) / 100
    wanted = probed({name.removeprefix("transformer."): each for name, each in converted.items()}, 1.0, inputs)
    lora = read_lora(path, network, LoraShape(4, 8.0, FAMILIES["flux1"].targets), **options)
    assert_same(probed(lora.weights, lora.shape.alpha / lora.shape.rank, inputs), wanted)
    return lora


def wide(network, modules, rank, alpha=None):
    shapes = [network.linears[module] for module in modules]
    return Trained(torch.randn(rank, shapes[0][1]), torch.randn(sum(rows for rows, _ in shapes), rank), alpha)


@pytest.mark.parametrize("key", [flat("lora_unet_"), dotted("diffusion_model.")], ids=["kohya", "comfyui"])
def test_the_fused_layer_of_the_single_blocks_of_flux1(tmp_path, published_flux1, key):
    names = {n: m for n, m in original("flux1", published_flux1).items() if FUSED.fullmatch(n)}
    assert len(names) == 38
    names = dict(list(names.items())[:2])
    loras = {name: wide(published_flux1, modules, 3, 2.0) for name, modules in names.items()}
    path = save(tmp_path / "lora.safetensors", content(loras, key, KOHYA))
    assert_as_converted(path, published_flux1)


def test_the_parts_of_a_block_diagonal_fused_layer_keep_their_rank(tmp_path, published_flux1):
    name = "single_blocks.37.linear1"
    parts = [wide(published_flux1, [module], 2) for module in original("flux1", published_flux1)[name]]
    fused = Trained(torch.cat([each.down for each in parts]), torch.block_diag(*(each.up for each in parts)), 4.0)
    path = save(tmp_path / "lora.safetensors", tensors(fused, f"lora_unet_{name.replace('.', '_')}"))
    assert assert_as_converted(path, published_flux1).shape.rank == 2


def test_a_file_of_all_layers_with_the_names_of_peft(tmp_path, published_flux1):
    """Diffusers reads the original names of FLUX.1 after `base_model.model.` only if almost all layers are there."""
    names = original("flux1", published_flux1)
    excluded = re.compile(rf"{XLABS.pattern}|{COMFY.pattern}|.*_in(\..*)?|final_layer\.adaLN_modulation\.1")
    names = {name: modules for name, modules in names.items() if not excluded.fullmatch(name)}
    loras = {name: wide(published_flux1, modules, 1) for name, modules in names.items()}
    path = save(tmp_path / "lora.safetensors", content(loras, dotted("base_model.model."), PEFT))
    lora = assert_as_converted(path, published_flux1, alpha="rank")
    assert len(lora.weights) == 2 * (19 * 14 + 38 * 6 + 1)


FIRST = {
    "flux1": ("double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_q"),
    "flux2_klein": ("double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_q"),
    "krea2": ("blocks.0.attn.wq", "transformer_blocks.0.attn.to_q"),
    "ernie_image": ("layers.0.self_attention.to_q", "layers.0.self_attention.to_q"),
    "qwen_image": ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_q"),
}
DIFFERENT = {
    "flux1-peft-parts": ("flux1", dotted("diffusion_model."), PEFT, None, "ignored"),
    "flux1-bare": ("flux1", dotted(""), PEFT, None, "ignored"),
    "flux1-peft": ("flux1", dotted("base_model.model."), PEFT, None, "error"),
    "flux2-bare": ("flux2_klein", dotted(""), PEFT, None, "ignored"),
    "flux2-alphas": ("flux2_klein", dotted("diffusion_model."), PEFT, 2.0, "error"),
    "flux2-comfyui-kohya": ("flux2_klein", dotted("diffusion_model."), KOHYA, 2.0, "ignored"),
    "krea2-kohya": ("krea2", flat("lora_unet_"), KOHYA, 2.0, "ignored"),
    "krea2-bare": ("krea2", dotted(""), PEFT, None, "ignored"),
    "krea2-alphas": ("krea2", dotted("diffusion_model."), PEFT, 2.0, "error"),
    "ernie-kohya": ("ernie_image", flat("lora_unet_"), KOHYA, 2.0, "ignored"),
    "ernie-bare": ("ernie_image", dotted(""), PEFT, None, "ignored"),
    "ernie-alphas": ("ernie_image", dotted("diffusion_model."), PEFT, 2.0, "error"),
    "qwen-peft": ("qwen_image", dotted("base_model.model."), PEFT, None, "ignored"),
}


@pytest.mark.parametrize(("family", "key", "parts", "alpha", "result"), DIFFERENT.values(), ids=DIFFERENT)
def test_layouts_that_diffusers_does_not_load_are_read(pipelines, tmp_path, family, key, parts, alpha, result):
    name, first = FIRST[family]
    modules = (original(family) | of_diffusers(family))[name]
    lora = trained(family, *modules, rank=3, alpha=alpha)
    path = save(tmp_path / "lora.safetensors", tensors(lora, key(name), parts))
    if result == "ignored":
        assert loaded_updates(pipelines[family], path) == {}
    else:
        with pytest.raises((ValueError, KeyError)):
            loaded_updates(pipelines[family], path)
    found = read_updates(read(family, path, alpha="rank"))
    assert_same(found, dict(zip(modules, lora.update.split(16), strict=True)))
    assert first in found


@pytest.mark.parametrize("parts", [PEFT, KOHYA])
@pytest.mark.parametrize("family", [family for family in NEW if family != "flux1"])
def test_alphas_beside_the_names_of_diffusers_are_applied(pipelines, tmp_path, family, parts):
    """Diffusers raises an error, or, for kohya's parts and FLUX.2, ignores the file."""
    module = FIRST[family][1]
    lora = trained(family, module, rank=3, alpha=2.0)
    path = save(tmp_path / "lora.safetensors", tensors(lora, f"transformer.{module}", parts))
    if (family, parts) == ("flux2_klein", KOHYA):
        assert loaded_updates(pipelines[family], path) == {}
    else:
        with pytest.raises(ValueError, match=r"Invalid|not found"):
            loaded_updates(pipelines[family], path)
    assert_same(read_updates(read(family, path)), {module: lora.update})


def test_alphas_beside_parts_of_kohya_are_applied_for_flux1(pipelines, tmp_path):
    module = FIRST["flux1"][1]
    lora = trained("flux1", module, rank=4, alpha=2.0)
    path = save(tmp_path / "lora.safetensors", tensors(lora, f"transformer.{module}"))
    assert_same(loaded_updates(pipelines["flux1"], path), {module: 2 * lora.update})
    assert_same(read_updates(read("flux1", path)), {module: lora.update})


@pytest.mark.parametrize("family", NEW)
def test_mixed_ranks_without_alpha_need_one(tmp_path, family):
    """Releases of diffusers scale such a file differently, so that its alpha must be given."""
    loras = made(family, of_diffusers(family), alphas=NONE)
    path = save(tmp_path / "lora.safetensors", content(loras, dotted("transformer."), PEFT))
    with raises("lora-alpha"):
        read(family, path)
    assert_same(read_updates(read(family, path, alpha="rank")), {name: lora.update for name, lora in loras.items()})


MODELS = {
    "sd3": "SD3",
    "zimage": "Z-Image",
    "flux1": "FLUX.1",
    "flux2_klein": "FLUX.2",
    "qwen_image": "Qwen-Image",
    "krea2": "Krea 2",
    "ernie_image": "ERNIE-Image",
}


@pytest.mark.parametrize("family", ALL_KINDS)
@pytest.mark.parametrize("other", ALL_KINDS)
def test_a_lora_of_another_model_is_named(tmp_path, family, other):
    """The error names the model of the file, but not another size of the same one."""
    linears = of_diffusers(other)
    if family == other:
        linears = {name: (name,) for name in linears if re.search(r"\.0\.", name)}
    key = (lambda name: name.replace(".0.", ".99.", 1)) if family == other else dotted("transformer.")
    path = save(tmp_path / "lora.safetensors", content(made(other, linears, alphas=SOME), key, PEFT))
    with raises("lora-mismatch", model=None if family == other else MODELS[other]) as caught:
        read(family, path)
    assert FAMILIES[family].transformer in caught.value.message
    assert (family == other) != (f"the names are those of {MODELS[other]}" in caught.value.message)


@pytest.mark.parametrize("other", ["flux1", "flux2_klein", "krea2"])
def test_original_names_of_another_model_are_named(tmp_path, other):
    path = save(
        tmp_path / "lora.safetensors", content(made(other, of_bfl(other), alphas=SOME), flat("lora_unet_"), KOHYA)
    )
    for family in ALL_KINDS.keys() - {other}:
        with raises("lora-mismatch", model=MODELS[other]):
            read(family, path)


def test_layers_of_a_flux1_lora_that_flux2_does_not_have_are_refused(tmp_path):
    """The fused layers have the same name but other shapes, and FLUX.2 has no layer for a part of them."""
    fused = trained("flux1", *original("flux1")["single_blocks.0.linear1"])
    path = save(tmp_path / "a.safetensors", tensors(fused, "lora_unet_single_blocks_0_linear1"))
    with raises("lora-mismatch", shape=[112, 16], expected=[144, 16]):
        read("flux2_klein", path, alpha="rank")
    part = trained("flux1", *original("flux1")["single_blocks.0.linear1_qkv"])
    path = save(tmp_path / "b.safetensors", tensors(part, "diffusion_model.single_blocks.0.linear1_qkv"))
    with raises("lora-mismatch", module="diffusion_model.single_blocks.0.linear1_qkv", model=None):
        read("flux2_klein", path, alpha="rank")
    found = read_updates(read("flux1", path, alpha="rank"))
    wanted = [f"single_transformer_blocks.0.attn.to_{name}" for name in "qkv"]
    assert_same(found, dict(zip(wanted, part.update.chunk(3), strict=True)))


def test_a_control_lora_of_flux1_is_refused(tmp_path):
    """It also changes norms, which no LoRA of linear layers can express."""
    name = "double_blocks.0.img_attn.qkv"
    stored = tensors(trained("flux1", *original("flux1")[name]), name, PEFT)
    norm = {"double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(8)}
    with raises("lora-keys", unknown=list(norm)):
        read("flux1", save(tmp_path / "control.safetensors", stored | norm), alpha="rank")


def test_two_names_of_one_layer_are_refused(tmp_path):
    """XLabs' name beside that of the original code, and a part beside the fused layer."""
    for first, second in (
        ("lora_unet_double_blocks_0_img_attn_proj", "transformer.transformer_blocks.0.attn.to_out.0"),
        ("lora_unet_single_blocks_0_linear2", "single_blocks.0.processor.proj"),
    ):
        module = "single_transformer_blocks.0.proj_out" if "single" in first else "transformer_blocks.0.attn.to_out.0"
        lora = trained("flux1", module)
        path = save(tmp_path / "lora.safetensors", tensors(lora, first) | tensors(trained("flux1", module), second))
        with raises("lora-unsupported", module=module):
            read("flux1", path, alpha="rank")


def test_the_published_lora_of_zimage(tmp_path):
    """The file and the settings of TDM-R1's model card, at the published numbers of blocks and a small width."""
    config = ALL_KINDS["zimage"][1] | {"n_layers": 30, "n_refiner_layers": 2}
    settings = LoraConfig(
        r=32,
        lora_alpha=64,
        init_lora_weights="gaussian",
        target_modules=["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"],
    )
    network = build_network("ZImageTransformer2DModel", config, "cpu")
    adapted = get_peft_model(network, settings, adapter_name="tdmr1")
    trainable = {name: weight for name, weight in adapted.named_parameters() if "tdmr1" in name}
    for weight in trainable.values():
        torch.nn.init.normal_(weight, std=0.3)
    path = tmp_path / "tdmr1_zimage_ema.ckpt"
    torch.save({"ema_parameters": [weight.detach().clone() for weight in trainable.values()]}, path)
    family = FAMILIES["zimage"]
    lora = read_lora(path, MetaNetwork(family, config), LoraShape(32, 64.0, family.targets))
    wanted = {
        name: layer.get_delta_weight("tdmr1").detach().double()
        for name, layer in network.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert len(wanted) == 34 * 4
    found = read_updates(lora)
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        torch.testing.assert_close(found[name], update, rtol=1e-5, atol=1e-5)
