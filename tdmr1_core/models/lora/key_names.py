"""Keys of LoRA files: the names of diffusers, PEFT, kohya and the models' original code, mapped to module names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tdmr1_core.models.families import Family

Part = Literal["down", "up", "alpha"]

PREFIXES = ("base_model.model.", "transformer.", "model.diffusion_model.", "diffusion_model.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
"""The prefixes of kohya's names. In the rest of these names, underscores replace the dots of the module name."""
TEXT_ENCODERS = ("text_encoder", "lora_te", "text_model")
OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    ".diff": "weight difference",
    "lora_mid": "Tucker-decomposed LoRA",
}
"""Parts of keys that identify an adapter that is not a plain LoRA, with the name of the method."""

_PARTS: dict[str, Part] = {
    "lora_A": "down",
    "lora_B": "up",
    "lora_down": "down",
    "lora_up": "up",
    "lora.down": "down",
    "lora.up": "up",
    "lora_linear_layer.down": "down",
    "lora_linear_layer.up": "up",
}
_NAME = re.compile(
    rf"(?P<module>.+?)\.(?:(?P<part>{'|'.join(map(re.escape, _PARTS))})(?:\.\w+)?\.weight|(?P<alpha>alpha))"
)

_BLOCKS = {"sd3": ("transformer_blocks.", "joint_blocks."), "zimage": ("", "")}
_QKV = ("to_q", "to_k", "to_v")
_ORIGINAL: dict[str, dict[str, tuple[str, ...]]] = {
    "sd3": {
        "x_block.attn.qkv": tuple(f"attn.{name}" for name in _QKV),
        "x_block.attn.proj": ("attn.to_out.0",),
        "x_block.attn2.qkv": tuple(f"attn2.{name}" for name in _QKV),
        "x_block.attn2.proj": ("attn2.to_out.0",),
        "x_block.mlp.fc1": ("ff.net.0.proj",),
        "x_block.mlp.fc2": ("ff.net.2",),
        "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "context_block.attn.proj": ("attn.to_add_out",),
        "context_block.mlp.fc1": ("ff_context.net.0.proj",),
        "context_block.mlp.fc2": ("ff_context.net.2",),
    },
    "zimage": {
        "attention.qkv": tuple(f"attention.{name}" for name in _QKV),
        "attention.out": ("attention.to_out.0",),
    },
}
"""The module names inside a block in the models' original code, with diffusers' names of the same layers.

A fused module has several names: its rows are those of the diffusers modules, one after the other.
"""


@dataclass(frozen=True)
class Key:
    """A parsed key of a LoRA file."""

    module: str
    part: Part
    flat: bool
    """Whether underscores replace the dots of the module name."""


def parse_key(key: str) -> Key | None:
    """Parse a key and remove its prefix; None if the key is not one of a LoRA."""
    match = _NAME.fullmatch(key)
    if match is None:
        return None
    module, part = match["module"], _PARTS[match["part"]] if match["part"] else "alpha"
    for prefix in FLAT_PREFIXES:
        if module.startswith(prefix):
            return Key(module.removeprefix(prefix), part, True)
    for prefix in PREFIXES:
        module = module.removeprefix(prefix)
    return Key(module, part, False)


def module_names(family: Family, linears: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The diffusers modules of each known module name: the module itself, or the parts of a fused module in order.

    `linears` are the names of the linear layers of the network.
    """
    known: dict[str, tuple[str, ...]] = {name: (name,) for name in linears}
    diffusers_block, original_block = _BLOCKS[family.name]
    for block in {match[0] for name in known if (match := re.match(r".+?\.\d+(?=\.)", name))}:
        for original, parts in _ORIGINAL[family.name].items():
            names = tuple(f"{block}.{part}" for part in parts)
            if all(name in known for name in names):
                renamed = block.replace(diffusers_block, original_block, 1) if diffusers_block else block
                known.setdefault(f"{renamed}.{original}", names)
    return known


def flatten_names(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The same mapping with underscores instead of dots in its keys, as in kohya's names."""
    return {name.replace(".", "_"): parts for name, parts in names.items()}
