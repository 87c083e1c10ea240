"""Keys of LoRA files: the module and the matrix that a key stands for, whatever the tool that wrote it.

Names are compared without their dots: `joint_blocks.0.x_block.attn.qkv` and `lora_unet_joint_blocks_0_x_block_attn_qkv`
are the same module. Prefixes of training tools and names that wrappers of torch insert are removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tdmr1_core.models.lora.original_names import Linears, Source, original_names, other_model

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
_NUMBERED = r"(?<=_lora[12])\.(?P<numbered>down|up)"
"""The part in XLabs' names for the two streams of FLUX.1: `qkv_lora1.down`, where `qkv_lora1` names the module."""
_PART = rf"(?:(?P<part>{'|'.join(map(re.escape, _PARTS))})(?:\.[^.]+)?|{_NUMBERED})\.weight"
_NAME = re.compile(rf"(?P<module>.+?)(?:{_PART}|(?P<alpha>\.alpha))")
"""The module and the part of a key. PEFT can put the name of the adapter before `weight`."""


@dataclass(frozen=True)
class Key:
    """A parsed key of a LoRA file: the module as it is written, and the part of its LoRA."""

    module: str
    part: Part


def parse_key(key: str) -> Key | None:
    """Parse a key; None if it is not one of a LoRA."""
    match = _NAME.fullmatch(key)
    if match is None:
        return None
    if match["numbered"]:
        return Key(match["module"], "down" if match["numbered"] == "down" else "up")
    return Key(match["module"], _PARTS[match["part"]] if match["part"] else "alpha")


class ModuleNames:
    """Finds the modules of diffusers that a module name of a file stands for, in one network."""

    def __init__(self, transformer: str, linears: Linears) -> None:
        """`transformer` is the class of the network in diffusers."""
        self._sources: dict[str, Source] = {}
        named = dict(original_names(transformer, linears)) | {name: Source((name,)) for name in linears}
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

    def other_model(self, unknown: Iterable[str]) -> str | None:
        """The model that has modules with these names, which this network does not have. None if it is not known."""
        return other_model([_flat(name) for name in unknown], self._sources)


def _flat(name: str) -> str:
    return name.replace(".", "_")
