"""The many names of one LoRA weight: diffusers, PEFT, kohya and the models' own, told apart and made canonical."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tdmr1_core.models.families import Family

Part = Literal["down", "up", "alpha"]

PREFIXES = ("base_model.model.", "transformer.", "model.diffusion_model.", "diffusion_model.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
"""Of kohya's names, in which every dot of the module is an underscore."""
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
"""Parts of names that tell of an adapter that is not a plain LoRA."""

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
"""What the models' own code calls the modules of a block; a fused one stands for several of diffusers'."""


@dataclass(frozen=True)
class Key:
    """A key of a LoRA file taken apart."""

    module: str
    part: Part
    flat: bool
    """Whether the module's dots are underscores."""


def parse_key(key: str) -> Key | None:
    """The module and part that a key names, without prefix; None for one that is no LoRA weight."""
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
    """What each name of a module stands for: diffusers' own name, or the parts of a fused module in their order."""
    known: dict[str, tuple[str, ...]] = {name: (name,) for name in linears}
    ours, theirs = _BLOCKS[family.name]
    for block in {match[0] for name in known if (match := re.match(r".+?\.\d+(?=\.)", name))}:
        for original, parts in _ORIGINAL[family.name].items():
            names = tuple(f"{block}.{part}" for part in parts)
            if all(name in known for name in names):
                known.setdefault(f"{block.replace(ours, theirs, 1) if ours else block}.{original}", names)
    return known


def flattened(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The same with underscores for dots, as kohya writes them."""
    return {name.replace(".", "_"): parts for name, parts in names.items()}
