"""Module names of the models' original code (Stability, BFL, Krea, Z-Image, XLabs), as modules of diffusers.

ComfyUI, kohya and other training tools use these names. Qwen-Image and ERNIE-Image have the same names in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

Linears = Mapping[str, tuple[int, int]]
"""The names of the linear layers of a network, with the shape (out, in) of each weight."""


@dataclass(frozen=True)
class Source:
    """What a module name of a file stands for: modules of diffusers.

    A fused module has several: its output rows are theirs, one after the other. `swapped` says that the halves of the
    rows are in the other order: shift and scale of the original code, scale and shift of diffusers.
    """

    modules: tuple[str, ...]
    swapped: bool = False


@dataclass(frozen=True)
class _Blocks:
    """The modules in the numbered blocks of a container, by original name. Most have one name in diffusers."""

    original: str
    diffusers: str
    modules: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Network:
    """The original names of the modules of a network of diffusers."""

    blocks: tuple[_Blocks, ...]
    top: Mapping[str, str] = field(default_factory=dict)
    """Modules outside of blocks."""
    one_of_each: Mapping[str, str] = field(default_factory=dict)
    """Modules that diffusers keeps once for each patch size, in a container. They are known if there is one size."""
    swapped: str = r"norm_out\.linear"
    """The pattern of layers of diffusers whose rows are scale and shift, if they have two parts."""


_ATTENTION = ("to_q", "to_k", "to_v")
_QKV = tuple(f"attn.{name}" for name in _ATTENTION)
_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

_SD3 = _Network(
    blocks=(
        _Blocks(
            "joint_blocks",
            "transformer_blocks",
            {
                "x_block.attn.qkv": _QKV,
                "x_block.attn.proj": ("attn.to_out.0",),
                "x_block.attn2.qkv": tuple(f"attn2.{name}" for name in _ATTENTION),
                "x_block.attn2.proj": ("attn2.to_out.0",),
                "x_block.mlp.fc1": ("ff.net.0.proj",),
                "x_block.mlp.fc2": ("ff.net.2",),
                "x_block.adaLN_modulation.1": ("norm1.linear",),
                "context_block.attn.qkv": _ADDED_QKV,
                "context_block.attn.proj": ("attn.to_add_out",),
                "context_block.mlp.fc1": ("ff_context.net.0.proj",),
                "context_block.mlp.fc2": ("ff_context.net.2",),
                "context_block.adaLN_modulation.1": ("norm1_context.linear",),
            },
        ),
    ),
    top={
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    },
    swapped=r"norm_out\.linear|transformer_blocks\.\d+\.norm1_context\.linear",  # of the last block
)

_ZIMAGE_BLOCK = {
    "attention.qkv": tuple(f"attention.{name}" for name in _ATTENTION),
    "attention.out": ("attention.to_out.0",),
}
_ZIMAGE = _Network(
    blocks=tuple(_Blocks(name, name, _ZIMAGE_BLOCK) for name in ("layers", "noise_refiner", "context_refiner")),
    one_of_each={"x_embedder": "all_x_embedder", "final_layer": "all_final_layer"},
)

_FLUX_ATTENTION = {
    "img_attn.qkv": _QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": _ADDED_QKV,
    "txt_attn.proj": ("attn.to_add_out",),
}
_FLUX_TOP = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
_FLUX_TOP |= {"final_layer.adaLN_modulation.1": "norm_out.linear"}


def _embedders(names: Mapping[str, str]) -> dict[str, str]:
    """The two layers of each embedder of FLUX."""
    parts = {"in_layer": "linear_1", "out_layer": "linear_2"}
    return {f"{name}.{part}": f"{names[name]}.{parts[part]}" for name in names for part in parts}


_FLUX1 = _Network(
    blocks=(
        _Blocks(
            "double_blocks",
            "transformer_blocks",
            {
                **_FLUX_ATTENTION,
                "img_mlp.0": ("ff.net.0.proj",),
                "img_mlp.2": ("ff.net.2",),
                "img_mod.lin": ("norm1.linear",),
                "txt_mlp.0": ("ff_context.net.0.proj",),
                "txt_mlp.2": ("ff_context.net.2",),
                "txt_mod.lin": ("norm1_context.linear",),
                # XLabs
                "qkv_lora1": _QKV,
                "proj_lora1": ("attn.to_out.0",),
                "qkv_lora2": _ADDED_QKV,
                "proj_lora2": ("attn.to_add_out",),
            },
        ),
        _Blocks(
            "single_blocks",
            "single_transformer_blocks",
            {
                "linear1": (*_QKV, "proj_mlp"),
                "linear1_qkv": _QKV,  # ComfyUI
                "linear2": ("proj_out",),
                "modulation.lin": ("norm.linear",),
                # XLabs
                "qkv": _QKV,
                "proj": ("proj_out",),
            },
        ),
    ),
    top=_FLUX_TOP
    | _embedders(
        {
            "time_in": "time_text_embed.timestep_embedder",
            "guidance_in": "time_text_embed.guidance_embedder",
            "vector_in": "time_text_embed.text_embedder",
        }
    ),
)

_FLUX2_FEED_FORWARD = {
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_FLUX2_ATTENTION = (*_QKV, *_ADDED_QKV, "attn.to_out.0", "attn.to_add_out")
_FLUX2 = _Network(
    blocks=(
        _Blocks("double_blocks", "transformer_blocks", _FLUX_ATTENTION | _FLUX2_FEED_FORWARD),
        _Blocks(
            "single_blocks",
            "single_transformer_blocks",
            {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
        ),
        _Blocks(  # the name of some exports, which cut off the first letters as if they were a prefix
            "sformer_blocks",
            "transformer_blocks",
            {name: (name,) for name in (*_FLUX2_ATTENTION, *(name for (name,) in _FLUX2_FEED_FORWARD.values()))},
        ),
    ),
    top=_FLUX_TOP
    | _embedders(
        {
            "time_in": "time_guidance_embed.timestep_embedder",
            "guidance_in": "time_guidance_embed.guidance_embedder",
        }
    )
    | {
        f"{name}.lin": f"{name}.linear"
        for name in ("single_stream_modulation", "double_stream_modulation_img", "double_stream_modulation_txt")
    },
)

_KREA2_BLOCK = {
    "attn.wq": ("attn.to_q",),
    "attn.wk": ("attn.to_k",),
    "attn.wv": ("attn.to_v",),
    "attn.wo": ("attn.to_out.0",),
    "attn.gate": ("attn.to_gate",),
    "mlp.gate": ("ff.gate",),
    "mlp.up": ("ff.up",),
    "mlp.down": ("ff.down",),
}
_KREA2 = _Network(
    blocks=(
        _Blocks("blocks", "transformer_blocks", _KREA2_BLOCK),
        _Blocks("txtfusion.layerwise_blocks", "text_fusion.layerwise_blocks", _KREA2_BLOCK),
        _Blocks("txtfusion.refiner_blocks", "text_fusion.refiner_blocks", _KREA2_BLOCK),
    ),
    top={
        "first": "img_in",
        "last.linear": "final_layer.linear",
        "tmlp.0": "time_embed.linear_1",
        "tmlp.2": "time_embed.linear_2",
        "tproj.1": "time_mod_proj",
        "txtmlp.1": "txt_in.linear_1",
        "txtmlp.3": "txt_in.linear_2",
        "txtfusion.projector": "text_fusion.projector",
    },
)

_NETWORKS = {
    "SD3Transformer2DModel": _SD3,
    "ZImageTransformer2DModel": _ZIMAGE,
    "FluxTransformer2DModel": _FLUX1,
    "Flux2Transformer2DModel": _FLUX2,
    "Krea2Transformer2DModel": _KREA2,
}
"""The original names by class of diffusers. Classes that are not listed have the same names in both."""

_MARKS = {
    "a UNet of Stable Diffusion": r"(^|_)((down|up|input|output)_blocks_\d|mid(dle)?_block_)",
    "FLUX.1": r"single_transformer_blocks_\d+_(proj_|norm_|attn_to_q$)|_blocks_\d+_((img|txt)_mod|modulation)_lin$",
    "FLUX.2": r"to_qkv_mlp_proj|_stream_modulation_|_ff(_context)?_linear_(in|out)",
    "FLUX.1 or FLUX.2": r"(double|single)_blocks_\d|single_transformer_blocks_\d",
    "Qwen-Image": r"transformer_blocks_\d+_(img|txt)_(mlp|mod)_",
    "Krea 2": r"txtfusion_|text_fusion_|_attn_to_gate|(^|_)blocks_\d+_attn_(w[qkvo]|gate)$",
    "ERNIE-Image": r"layers_\d+_(self_attention_to_|mlp_linear_fc2|mlp_(gate|up)_proj)",
    "SD3": r"joint_blocks_\d|transformer_blocks_\d+_attn2_to_",
    "Wan": r"blocks_\d+_(self|cross)_attn_[qkvo]$",
    "Z-Image": r"(noise|context)_refiner_\d|layers_\d+_(attention|feed_forward)_",
}
"""A pattern of the names, without dots, that only one kind of network has. The first that matches is used."""


def original_names(transformer: str, linears: Linears) -> Iterator[tuple[str, Source]]:
    """The original module names of a network of this class of diffusers, and what they stand for."""
    network = _NETWORKS.get(transformer)
    if network is None:
        return
    for blocks in network.blocks:
        for number in _numbers(blocks.diffusers, linears):
            for original, parts in blocks.modules.items():
                names = tuple(f"{blocks.diffusers}.{number}.{part}" for part in parts)
                if all(name in linears for name in names):
                    yield f"{blocks.original}.{number}.{original}", _source(names, network, linears)
    for original, name in network.top.items():
        if name in linears:
            yield original, _source((name,), network, linears)
    for original, container in network.one_of_each.items():
        found = [re.fullmatch(rf"{container}\.[^.]+(.*)", name) for name in linears]
        matches = [match for match in found if match]
        if len({match[1] for match in matches}) == len(matches):  # there is one patch size
            for match in matches:
                yield f"{original}{match[1]}", Source((match[0],))


def other_model(modules: Iterable[str], known: Iterable[str]) -> str | None:
    """The model whose names these are, by a pattern that none of the `known` names matches. None if it is not known.

    All names are without dots.
    """
    model, mark = next(
        ((model, mark) for model, mark in _MARKS.items() if any(re.search(mark, name) for name in modules)), (None, "")
    )
    return None if model is None or any(re.search(mark, name) for name in known) else model


def _numbers(container: str, linears: Linears) -> list[str]:
    """The numbers of the blocks of a container."""
    found = (re.match(rf"{re.escape(container)}\.(\d+)\.", name) for name in linears)
    return list(dict.fromkeys(match[1] for match in found if match))


def _source(names: tuple[str, ...], network: _Network, linears: Linears) -> Source:
    rows, width = linears[names[0]]
    return Source(names, swapped=bool(re.fullmatch(network.swapped, names[0])) and rows == 2 * width)
