"""Files of every layout that diffusers loads for SD3 and Z-Image change the same weights by the same amount.

Where tdmr1 differs from the loader of diffusers (0.42), it follows the tool that trained the LoRA, or refuses the file:

- Diffusers ignores a whole file without an error: names of kohya, PEFT or ComfyUI and names without a prefix for SD3;
  names of PEFT, and names without a prefix and alpha, for Z-Image. These are read.
- Diffusers uses a part of a file: in SD3 files with several names for the two matrices, it reads only those of the
  first key. These are read.
- Diffusers raises an error: `lora_linear_layer`, and alphas for SD3; for Z-Image alphas after `transformer.` and
  `lora_A` after `lora_unet_`. These are read.
- Diffusers uses a part of a file with `dora_scale`, with a fused projection beside its parts, or (with a warning) with
  unknown modules. It loads LoKr, DoRA, biases of B and parts for text encoders. These are refused by name.
- Kohya's record of alpha, without alphas in the file: diffusers, kohya and ComfyUI ignore it. It is used if it is the
  rank, otherwise alpha is unknown.
- Alphas beside an adapter config: diffusers applies both. Equal alphas are applied once, others are refused.
"""

from __future__ import annotations

import json
import re
import warnings
from typing import NamedTuple

import pytest
import torch
from diffusers.utils import logging
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model_state_dict
from support.errors import raises
from support.lora_updates import (
    NETWORKS,
    Trained,
    assert_same,
    loaded_updates,
    network_updates,
    pipeline,
    read,
    read_updates,
    save,
    tensors,
    trained,
)
from transformers import CLIPTextModelWithProjection

from tdmr1_core.conformance.tiny_parts import clip_encoder
from tdmr1_core.conformance.tiny_tokenizers import clip_tokenizer

pytestmark = pytest.mark.unit

EXAMPLES = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
PEFT, KOHYA, DOTTED = "lora_A lora_B", "lora_down lora_up", "lora.down lora.up"
LINEAR, NAMED = "lora_linear_layer.down lora_linear_layer.up", "lora_A.default lora_B.default"
ATTENTION = re.compile(r"(.*\.)(to_[qkv]|to_out\.0)")


@pytest.fixture(scope="module")
def pipelines():
    """A pipeline of diffusers with a tiny network for each family. SD3 has one text encoder."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    encoder = clip_encoder(CLIPTextModelWithProjection, clip_tokenizer(), 16)
    yield {"sd3": pipeline("sd3", text_encoder=encoder), "zimage": pipeline("zimage")}
    logging.set_verbosity(before)


def dotted(prefix):
    return lambda module: prefix + module


def flat(prefix):
    return lambda module: prefix + module.replace(".", "_")


def short_out(prefix):
    """The name of the output projection in the original code of Z-Image."""
    return lambda module: prefix + module.replace("attention.to_out.0", "attention.out")


def processor(module):
    block, name = ATTENTION.fullmatch(module).groups()
    return f"transformer.{block}processor.{name.removesuffix('.0')}_lora"


def processor_module(module):
    return "transformer.{}processor.{}".format(*ATTENTION.fullmatch(module).groups())


class Layout(NamedTuple):
    """The names of a layout, and whether modules can have, must have, or cannot have an alpha."""

    family: str
    key: object
    parts: str
    alphas: str = "none"


LAYOUTS = {
    "sd3-diffusers": Layout("sd3", dotted("transformer."), PEFT),
    "sd3-dotted": Layout("sd3", dotted("transformer."), DOTTED),
    "sd3-processors": Layout("sd3", processor, "down up"),
    "sd3-modules-of-processors": Layout("sd3", processor_module, DOTTED),
    "zimage-diffusers": Layout("zimage", dotted("transformer."), PEFT),
    "zimage-dotted": Layout("zimage", dotted("transformer."), DOTTED),
    "zimage-comfyui-peft": Layout("zimage", dotted("diffusion_model."), PEFT, "some"),
    "zimage-comfyui-kohya": Layout("zimage", dotted("diffusion_model."), KOHYA, "some"),
    "zimage-comfyui-adapter": Layout("zimage", dotted("diffusion_model."), NAMED, "some"),
    "zimage-comfyui-dotted": Layout("zimage", dotted("diffusion_model."), DOTTED, "some"),
    "zimage-comfyui-original": Layout("zimage", short_out("diffusion_model."), KOHYA, "some"),
    "zimage-bare-peft": Layout("zimage", dotted(""), PEFT, "one"),
    "zimage-bare-kohya": Layout("zimage", dotted(""), KOHYA, "one"),
    "zimage-bare-dotted": Layout("zimage", dotted(""), DOTTED, "one"),
    "zimage-bare-adapter": Layout("zimage", dotted(""), NAMED, "some"),
    "zimage-kohya": Layout("zimage", flat("lora_unet_"), KOHYA, "some"),
    "zimage-anime-z": Layout("zimage", flat("lora_unet_"), DOTTED, "some"),
}


@st.composite
def loras(draw, layout):
    """A LoRA of some modules, with their own ranks and alphas."""
    linears = list(NETWORKS[layout.family].linears)
    if layout.key in (processor, processor_module):
        linears = [name for name in linears if ATTENTION.fullmatch(name)]
    modules = draw(st.lists(st.sampled_from(linears), min_size=1, max_size=6, unique=True))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    exact = dtype in (torch.float16, torch.bfloat16)  # diffusers multiplies by the scale in this type
    ranks = st.sampled_from([1, 2, 4] if exact else [1, 2, 3, 5])
    alphas = [0.5, 1.0, 2.0, 8.0] if exact else [0.5, 1.0, 3.0, 0.3]
    torch.manual_seed(draw(st.integers(0, 99)))
    given = [] if layout.alphas == "none" else draw(st.lists(st.sampled_from(modules), unique=True))
    given = given or modules[:1] * (layout.alphas == "one")
    return {
        name: trained(
            *(layout.family, name),
            rank=draw(ranks),
            alpha=draw(st.sampled_from(alphas)) if name in given else None,
            dtype=dtype,
        )
        for name in modules
    }


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@EXAMPLES
@given(data=st.data())
def test_layouts_of_diffusers(pipelines, tmp_path_factory, layout, data):
    lora = data.draw(loras(layout))
    content = {}
    for module, each in lora.items():
        content |= tensors(each, layout.key(module), layout.parts)
    content = dict(data.draw(st.permutations(list(content.items()))))
    suffix = data.draw(st.sampled_from([".safetensors", ".bin"]))
    path = save(tmp_path_factory.mktemp("lora") / f"lora{suffix}", content)
    wanted = {module: each.update for module, each in lora.items()}
    assert_same(loaded_updates(pipelines[layout.family], path), wanted)
    assert_same(read_updates(read(layout.family, path, alpha="rank")), wanted)


@pytest.mark.parametrize("parts", [DOTTED, "lora_down lora_up"])
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_the_fused_projection_of_zimage(pipelines, tmp_path, parts, alpha):
    modules = [f"layers.0.attention.to_{part}" for part in "qkv"]
    lora = trained("zimage", *modules, rank=3, alpha=alpha)
    path = save(tmp_path / "lora.safetensors", tensors(lora, "lora_unet_layers_0_attention_qkv", parts))
    wanted = dict(zip(modules, lora.update.chunk(3), strict=True))
    assert_same(loaded_updates(pipelines["zimage"], path), wanted)
    assert_same(read_updates(read("zimage", path, alpha="rank")), wanted)


NAMES = {"sd3": ["attn.to_q", "norm1.linear", "proj_out", "ff.net.2"], "zimage": ["to_q", "w1", "cap_embedder.1"]}


@pytest.mark.parametrize("family", NAMES)
@EXAMPLES
@given(data=st.data())
def test_files_that_diffusers_saves_with_an_adapter_config(pipelines, tmp_path_factory, family, data):
    values = st.dictionaries(st.sampled_from(NAMES[family]), st.integers(1, 6), max_size=2)
    targets = data.draw(st.lists(st.sampled_from(NAMES[family]), min_size=1, unique=True))
    config = LoraConfig(
        r=data.draw(st.integers(1, 5)),
        lora_alpha=data.draw(st.integers(1, 20)),
        target_modules=data.draw(st.sampled_from([targets, "|".join(f".*{re.escape(each)}" for each in targets)])),
        use_rslora=data.draw(st.booleans()),
        rank_pattern=data.draw(values),
        alpha_pattern=data.draw(values),
        exclude_modules=data.draw(st.sampled_from([None, r".*blocks\.1\..*", "context_refiner.*"])),
    )
    pipe, folder = pipelines[family], tmp_path_factory.mktemp("saved")
    network = pipe.transformer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.add_adapter(config, adapter_name="trained")
    try:
        for name, weight in network.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.3)
        wanted = network_updates(network, "trained")
        weights = get_peft_model_state_dict(network, adapter_name="trained")
        metadata = network.peft_config["trained"].to_dict()
        pipe.save_lora_weights(folder, weights, transformer_lora_adapter_metadata=metadata)
    finally:
        pipe.unload_lora_weights()
    assert_same(loaded_updates(pipe, folder), wanted)
    assert_same(read_updates(read(family, folder)), wanted)


SD3, ZIMAGE = "transformer_blocks.0.attn.to_q", "layers.0.attention.to_q"
FIRST = {"sd3": SD3, "zimage": ZIMAGE}
OTHERS = {"sd3": "transformer_blocks.1.ff.net.2", "zimage": "noise_refiner.0.feed_forward.w1"}
DIFFERENT = {
    "sd3-kohya": ("sd3", flat("lora_unet_"), KOHYA, 2.0, "ignored"),
    "sd3-peft": ("sd3", dotted("base_model.model."), PEFT, None, "ignored"),
    "sd3-bare": ("sd3", dotted(""), PEFT, None, "ignored"),
    "sd3-comfyui": ("sd3", dotted("diffusion_model."), PEFT, None, "ignored"),
    "sd3-linear-layers": ("sd3", dotted("transformer."), LINEAR, None, "error"),
    "sd3-alphas": ("sd3", dotted("transformer."), PEFT, 2.0, "error"),
    "zimage-peft": ("zimage", dotted("base_model.model."), PEFT, None, "ignored"),
    "zimage-bare": ("zimage", dotted(""), KOHYA, None, "ignored"),
    "zimage-alphas": ("zimage", dotted("transformer."), PEFT, 2.0, "error"),
    "zimage-kohya-peft": ("zimage", flat("lora_unet_"), PEFT, 2.0, "error"),
    "zimage-linear-layers": ("zimage", dotted("transformer."), LINEAR, None, "error"),
}


@pytest.mark.parametrize(("family", "key", "parts", "alpha", "result"), DIFFERENT.values(), ids=DIFFERENT)
def test_layouts_that_diffusers_does_not_load_are_read(pipelines, tmp_path, family, key, parts, alpha, result):
    lora = {module: trained(family, module, alpha=alpha) for module in (FIRST[family], OTHERS[family])}
    content = {}
    for module, each in lora.items():
        content |= tensors(each, key(module), parts)
    path = save(tmp_path / "lora.safetensors", content)
    if result == "ignored":
        assert loaded_updates(pipelines[family], path) == {}
    else:
        with pytest.raises((ValueError, IndexError)):
            loaded_updates(pipelines[family], path)
    assert_same(read_updates(read(family, path, alpha="rank")), {name: each.update for name, each in lora.items()})


def test_several_names_of_the_two_matrices_in_one_file(pipelines, tmp_path):
    first, second = trained("sd3", SD3), trained("sd3", OTHERS["sd3"])
    content = tensors(first, f"transformer.{SD3}", PEFT) | tensors(second, f"transformer.{OTHERS['sd3']}", DOTTED)
    path = save(tmp_path / "lora.safetensors", content)
    assert loaded_updates(pipelines["sd3"], path).keys() == {SD3}
    assert_same(read_updates(read("sd3", path, alpha="rank")), {SD3: first.update, OTHERS["sd3"]: second.update})


HALF_USED = {
    "dora-scale": ("sd3", {f"transformer.{SD3}.dora_scale": torch.ones(16)}, "lora-unsupported"),
    "dora": ("sd3", {f"transformer.{SD3}.lora_magnitude_vector": torch.ones(16)}, "lora-unsupported"),
    "bias": ("sd3", {f"transformer.{SD3}.lora_B.bias": torch.ones(16)}, "lora-unsupported"),
    "unknown-module": ("sd3", tensors(trained("sd3", SD3), "transformer.new_block.0.to_q", PEFT), "lora-mismatch"),
    "second-adapter": ("sd3", tensors(trained("sd3", SD3), f"transformer.{SD3}", NAMED), "lora-unsupported"),
    "unet": ("sd3", tensors(trained("sd3", SD3), "unet.down_blocks.0.attn.to_q", PEFT), "lora-mismatch"),
    "zimage-dora-scale": ("zimage", {f"transformer.{ZIMAGE}.dora_scale": torch.ones(16)}, "lora-unsupported"),
}


@pytest.mark.parametrize(("family", "added", "code"), HALF_USED.values(), ids=HALF_USED)
def test_files_that_diffusers_uses_in_part_or_with_another_method_are_refused(pipelines, tmp_path, family, added, code):
    module = FIRST[family]
    path = save(tmp_path / "lora.safetensors", tensors(trained(family, module), f"transformer.{module}", PEFT) | added)
    assert module in loaded_updates(pipelines[family], path)
    with raises(code) as caught:
        read(family, path, alpha="rank")
    assert caught.value.hint
    assert any(key.rsplit(".", 2)[0].removeprefix("transformer.") in caught.value.message for key in added)


def test_a_lokr_and_a_fused_projection_beside_its_parts_are_refused(pipelines, tmp_path):
    lokr = {f"diffusion_model.{ZIMAGE}.lokr_w{number}": torch.ones(4, 4) for number in (1, 2)}
    path = save(tmp_path / "lokr.safetensors", lokr)
    with raises("lora-unsupported", method="LoKr"):
        read("zimage", path, alpha="rank")
    modules = [f"layers.0.attention.to_{part}" for part in "qkv"]
    content = tensors(trained("zimage", *modules), "lora_unet_layers_0_attention_qkv", DOTTED)
    for module in modules:
        content |= tensors(trained("zimage", module), flat("lora_unet_")(module), DOTTED)
    path = save(tmp_path / "both.safetensors", content)
    assert loaded_updates(pipelines["zimage"], path).keys() == set(modules)  # the fused LoRA is dropped
    with raises("lora-unsupported", module="layers.0.attention.to_k"):
        read("zimage", path, alpha="rank")


def test_parts_for_text_encoders_are_ignored_only_if_the_user_says_so(pipelines, tmp_path):
    lora, projection = trained("sd3", SD3), "text_model.encoder.layers.0.self_attn.q_proj"
    matrices = {f"{projection}.lora_A.weight": torch.ones(2, 16), f"{projection}.lora_B.weight": torch.ones(16, 2)}
    weights = tensors(lora, SD3, PEFT)
    pipelines["sd3"].save_lora_weights(tmp_path, weights, text_encoder_lora_layers=matrices)
    assert_same(loaded_updates(pipelines["sd3"], tmp_path), {SD3: lora.update})
    with raises("lora-unsupported") as caught:
        read("sd3", tmp_path, alpha="rank")
    assert "model.ignore_text_encoder_lora" in caught.value.hint
    assert_same(read_updates(read("sd3", tmp_path, alpha="rank", ignore_text_encoder=True)), {SD3: lora.update})


def test_the_recorded_alpha_of_kohya_is_not_the_alpha_of_the_modules(pipelines, tmp_path):
    lora = trained("zimage", ZIMAGE, rank=4)
    content = tensors(lora, f"diffusion_model.{ZIMAGE}", PEFT)
    for recorded in ("1.0", "4"):
        path = save(tmp_path / f"{recorded}.safetensors", content, {"ss_network_alpha": recorded})
        assert_same(loaded_updates(pipelines["zimage"], path), {ZIMAGE: lora.update})
        assert_same(read_updates(read("zimage", path, alpha="rank")), {ZIMAGE: lora.update})
    assert_same(read_updates(read("zimage", path)), {ZIMAGE: lora.update})
    with raises("lora-alpha", rank=4, network_alpha=1.0):
        read("zimage", tmp_path / "1.0.safetensors")


@pytest.mark.parametrize("alpha", [1.0, 3.0])
def test_an_alpha_beside_an_adapter_config(pipelines, tmp_path, alpha):
    lora = trained("zimage", ZIMAGE, rank=2, alpha=alpha)
    config = {"transformer.r": 2, "transformer.lora_alpha": 1, "transformer.target_modules": [ZIMAGE]}
    path = tmp_path / "lora.safetensors"
    save(path, tensors(lora, f"diffusion_model.{ZIMAGE}", PEFT), {"lora_adapter_metadata": json.dumps(config)})
    assert_same(loaded_updates(pipelines["zimage"], path), {ZIMAGE: lora.update / 2})
    if alpha == 1:
        assert_same(read_updates(read("zimage", path)), {ZIMAGE: lora.update})
    else:
        with raises("lora-unsupported", alphas=[3.0, 1.0]):
            read("zimage", path)


def test_a_reference_update_is_alpha_over_rank():
    lora = Trained(torch.ones(2, 3), torch.ones(4, 2), 4.0)
    assert torch.equal(lora.update, torch.full((4, 3), 4.0, dtype=torch.float64))
