"""Keys of LoRA files: the names of diffusers, PEFT, kohya and the models' original code, as modules of diffusers.

Names are compared without their dots: `joint_blocks.0.x_block.attn.qkv` and `lora_unet_joint_blocks_0_x_block_attn_qkv`
are the same module. Prefixes of training tools and names that wrappers of torch insert are removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tdmr1_core.models.families import Family

Part = Literal["down", "up", "alpha"]

PREFIXES = (
    *("base_model_model_", "module_", "transformer_", "diffusion_model_", "model_", "unet_", "denoiser_", "default_"),
    *("lora_unet_", "lora_transformer_", "lycoris_", "lora_"),
)
"""What precedes the name of a module, in any order and number, with underscores instead of dots."""
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module", "processor")
"""Names that torch.compile, FSDP, checkpointing, DDP and early diffusers insert anywhere in the name of a module."""
_FLAT_WRAPPER = re.compile(rf"(^|_)(?:{'|'.join(name for name in WRAPPERS if name.startswith('_'))})_")
TEXT_ENCODERS = re.compile(
    rf"((base_model\.model|{'|'.join(WRAPPERS)})\.)*(lora_|lycoris_)?"
    r"(text_encoder|te\d?[._]|text_model|cond_stage_model|clip_[lg]\.|t5(xxl)?\.)"
)
"""The start of the keys of text encoders."""
OTHER_METHODS = {
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "LoKr": r"lokr_",
    "LoHa": r"hada_",
    "OFT": r"(^|[._])(b?oft)_(?!.*lora_)",
    "VeRA": r"vera_",
    "IA3": r"ia3_",
    "GLoRA": r"\.[ab][12]\.weight$",
    "Tucker-decomposed LoRA": r"lora_mid",
    "a LoRA of an embedding": r"lora_embedding_",
    "a LoRA with a trained scalar": r"\.scalar$",
    "a difference of weights": r"\.diff(_b)?$",
    "trained tokens": r"trainable_tokens_",
    "biases": r"\.bias$",
}
"""What is not a plain LoRA of a linear layer, with the pattern of its keys."""
SAVED_MODULES = "whole weights, such as those of modules_to_save"
WHOLE_WEIGHT = re.compile(r"(?!.*lora).*\.weight")
"""A key of a weight that is not one of a LoRA."""
BIAS = re.compile(r"(?!.*lora).*\.bias")
"""A key of a bias that is not one of a LoRA."""

_PARTS: dict[str, Part] = {
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_down": "down",
    ".lora_up": "up",
    ".lora.down": "down",
    ".lora.up": "up",
    "_lora.down": "down",
    "_lora.up": "up",
    ".lora_linear_layer.down": "down",
    ".lora_linear_layer.up": "up",
}
_NAME = re.compile(
    rf"(?P<module>.+?)(?:(?P<part>{'|'.join(map(re.escape, _PARTS))})(?:\.[^.]+)?\.weight|(?P<alpha>\.alpha))"
)
"""The module and the part of a key. PEFT can put the name of the adapter before `weight`."""


@dataclass(frozen=True)
class Key:
    """A parsed key of a LoRA file: the module as it is written, and the part of its LoRA."""

    module: str
    part: Part


@dataclass(frozen=True)
class Source:
    """What a module name of a file stands for: modules of diffusers.

    A fused module has several: its output rows are theirs, one after the other. `swapped` says that the halves of the
    rows are in the other order: shift and scale of the original code, scale and shift of diffusers.
    """

    modules: tuple[str, ...]
    swapped: bool = False


_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_SD3_BLOCK = {
    "x_block.attn.qkv": tuple(f"attn.{name}" for name in _QKV),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": tuple(f"attn2.{name}" for name in _QKV),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.attn.qkv": tuple(f"attn.{name}" for name in _ADDED),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
_SD3_TOP = {
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_SD3_SWAPPED = re.compile(r"norm_out\.linear|transformer_blocks\.\d+\.norm1_context\.linear")
"""Layers of diffusers whose rows are scale and shift, if they have two parts: those of a last block and the output."""
_ZIMAGE_BLOCK = {
    "attention.qkv": tuple(f"attention.{name}" for name in _QKV),
    "attention.out": ("attention.to_out.0",),
}
_ZIMAGE_TOP = {"x_embedder": "all_x_embedder", "final_layer": "all_final_layer"}
"""Modules of the original code that diffusers keeps once for each patch size."""


def parse_key(key: str) -> Key | None:
    """Parse a key; None if it is not one of a LoRA."""
    match = _NAME.fullmatch(key)
    if match is None:
        return None
    return Key(match["module"], _PARTS[match["part"]] if match["part"] else "alpha")


class ModuleNames:
    """Finds the modules of diffusers that a module name of a file stands for, in one network."""

    def __init__(self, family: Family, linears: Mapping[str, tuple[int, int]]) -> None:
        """`linears` maps the names of the linear layers to their shape (out, in)."""
        self._sources: dict[str, Source] = {}
        aliases = _sd3_names if family.name == "sd3" else _zimage_names
        named = {name: Source((name,)) for name in linears} | dict(aliases(linears))
        short = {name.removesuffix(".0"): source for name, source in named.items() if name.endswith("to_out.0")}
        for name, source in (short | named).items():
            self._sources[_flat(name)] = source

    def find(self, module: str) -> tuple[Source, str] | None:
        """The modules that a name stands for, and the name as the patterns of PEFT's config see it; None if unknown.

        That is the name of diffusers, or, for modules of another network, the name of the file without prefixes.
        """
        dotted = ".".join(part for part in module.split(".") if part not in WRAPPERS)
        name = _flat(dotted)
        while _FLAT_WRAPPER.search(name):
            name = _FLAT_WRAPPER.sub(r"\1", name)
        while name not in self._sources:
            shorter = next((name.removeprefix(each) for each in PREFIXES if name.startswith(each)), None)
            shorter = name.lstrip("_") if shorter is None and name.startswith("_") else shorter
            if shorter is None:
                return None
            name = shorter
        source = self._sources[name]
        of_diffusers = len(source.modules) == 1 and name == _flat(source.modules[0])
        return source, source.modules[0] if of_diffusers else dotted[-len(name) :]


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _blocks(linears: Mapping[str, tuple[int, int]]) -> list[str]:
    """The names of the blocks, such as `transformer_blocks.0`."""
    return list(dict.fromkeys(match[0] for name in linears if (match := re.match(r".+?\.\d+(?=\.)", name))))


def _sd3_names(linears: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Source]]:
    """The module names of SD3's original code."""

    def source(*names: str) -> Source:
        rows, width = linears[names[0]]
        return Source(names, swapped=bool(_SD3_SWAPPED.fullmatch(names[0])) and rows == 2 * width)

    for block in _blocks(linears):
        for original, parts in _SD3_BLOCK.items():
            names = tuple(f"{block}.{part}" for part in parts)
            if all(name in linears for name in names):
                yield f"{block.replace('transformer_blocks.', 'joint_blocks.', 1)}.{original}", source(*names)
    for original, name in _SD3_TOP.items():
        if name in linears:
            yield original, source(name)


def _zimage_names(linears: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Source]]:
    """The module names of Z-Image's original code."""
    for block in _blocks(linears):
        for original, parts in _ZIMAGE_BLOCK.items():
            names = tuple(f"{block}.{part}" for part in parts)
            if all(name in linears for name in names):
                yield f"{block}.{original}", Source(names)
    for original, container in _ZIMAGE_TOP.items():
        found = [re.fullmatch(rf"{container}\.[^.]+(.*)", name) for name in linears]
        matches = [match for match in found if match]
        if len({match[1] for match in matches}) == len(matches):  # there is one patch size
            for match in matches:
                yield f"{original}{match[1]}", Source((match[0],))
