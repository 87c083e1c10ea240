"""Frozen weights and optimiser states in 8 or 4 bits, by bitsandbytes (`pip install 'tdmr1[quantised]'`)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.backbone import Backbone

MARKS = {"8bit": "is_loaded_in_8bit", "nf4": "is_loaded_in_4bit"}
"""By what PEFT knows that a network's linear layers are bitsandbytes' own."""


def bitsandbytes() -> Any:
    """The package. Raises Tdmr1Error where it is not installed."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise Tdmr1Error(
            "8 or 4 bits need bitsandbytes, which is not installed", "pip install 'tdmr1[quantised]'"
        ) from error
    return bitsandbytes


def quantize(backbone: Backbone, how: Literal["8bit", "nf4"]) -> None:
    """Hold the linear layers of a denoiser in fewer bits, before LoRAs are put on them; the rest stays as it is.

    Weights must still be on the CPU: they are quantised one by one as they come to the backbone's device, which never
    holds the whole ones.
    """
    layers, network = bitsandbytes().nn, backbone.network
    for name, linear in list(network.named_modules()):
        if type(linear) is not nn.Linear:
            continue
        shape = (linear.in_features, linear.out_features, linear.bias is not None)
        if how == "nf4":
            named = {"compute_dtype": linear.weight.dtype, "quant_type": "nf4", "device": "meta"}
            fewer = layers.Linear4bit(*shape, **named)
            weight = layers.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        else:
            fewer = layers.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
            weight = layers.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        fewer.weight, fewer.bias = weight, linear.bias
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, fewer.to(backbone.device))  # it is quantised as it is moved
    network.to(backbone.device)
    setattr(network, MARKS[how], True)


def is_quantized(network: nn.Module) -> bool:
    """Whether its linear layers are in fewer bits."""
    return any(getattr(network, mark, False) for mark in MARKS.values())
