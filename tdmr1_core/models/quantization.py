"""Quantizes frozen weights and optimizer states with bitsandbytes (`pip install 'tdmr1[quantised]'`)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.backbone import Backbone

MARKS = {"8bit": "is_loaded_in_8bit", "nf4": "is_loaded_in_4bit"}
"""The attributes by which PEFT recognizes a network with the linear layers of bitsandbytes."""


def bitsandbytes() -> Any:
    """The package bitsandbytes. Raises Tdmr1Error if it is not installed."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise Tdmr1Error(
            "8-bit and 4-bit weights and optimizer states need the package bitsandbytes, which is not installed",
            "run `pip install 'tdmr1[quantised]'`",
            code="dependency-missing",
            values={"package": "bitsandbytes"},
        ) from error
    return bitsandbytes


def quantize(backbone: Backbone, how: Literal["8bit", "nf4"]) -> None:
    """Quantize the linear layers of a denoiser. Must be called before LoRAs are added; other layers are unchanged.

    The weights must be on the CPU. Each layer is quantized as it is moved to the device of the backbone, so that the
    device never holds full-precision weights.
    """
    layers, network = bitsandbytes().nn, backbone.network
    for name, linear in list(network.named_modules()):
        if type(linear) is not nn.Linear:
            continue
        shape = (linear.in_features, linear.out_features, linear.bias is not None)
        if how == "nf4":
            named = {"compute_dtype": linear.weight.dtype, "quant_type": "nf4", "device": "meta"}
            quantized = layers.Linear4bit(*shape, **named)
            weight = layers.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        else:
            quantized = layers.Linear8bitLt(*shape, has_fp16_weights=False, device="meta")
            weight = layers.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        quantized.weight, quantized.bias = weight, linear.bias
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, quantized.to(backbone.device))  # `to` quantizes
    network.to(backbone.device)
    setattr(network, MARKS[how], True)


def is_quantized(network: nn.Module) -> bool:
    """True if the linear layers of a network are quantized."""
    return any(getattr(network, mark, False) for mark in MARKS.values())
