"""Selects the kernel of torch that computes attention in the denoisers (`memory.attention`).

The denoisers of all families call `torch.nn.functional.scaled_dot_product_attention`, which chooses a kernel for each
call. The processors of SD3 call it directly; those of the other families call diffusers' dispatcher, whose default
backend does. Therefore one context of torch selects the kernel for every family.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Literal

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import Family

Attention = Literal["flash", "cudnn", "efficient", "math"]
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
HEAD_SIZE, TOKENS = 64, 128
"""The shape with which a kernel is tried. The published models have heads of 64 or 128 channels."""


def attention_kernel(attention: Attention) -> AbstractContextManager[None]:
    """A context in which torch computes attention with this kernel.

    The selection applies to the whole process. A reward that runs meanwhile in another thread, with inputs that the
    kernel does not support, gets the math kernel.
    """
    return sdpa_kernel(list(dict.fromkeys((KERNELS[attention], SDPBackend.MATH))), set_priority=True)


def check_attention(attention: Attention, device: torch.device, precision: torch.dtype, family: Family) -> None:
    """Raise Tdmr1Error if torch does not have this kernel for the device, the dtype and the masks of the family.

    The kernel is tried on small random tensors, with gradient.
    """
    masked = family.masks_padding
    if _supports(attention, device, precision, masked):
        return
    usable = ["auto", *(each for each in KERNELS if _supports(each, device, precision, masked))]
    dtype = str(precision).removeprefix("torch.")
    masks = f", with the padding masks of the family {family.name}" if masked else ""
    raise Tdmr1Error(
        f"memory.attention is {attention}, but torch {torch.__version__} has no such kernel for {dtype} on the device "
        f"{device.type!r}{masks}",
        f"set memory.attention to one of {', '.join(usable)}",
        code="attention-unavailable",
        values={
            "attention": attention,
            "device": device.type,
            "precision": dtype,
            "family": family.name,
            "masked": masked,
            "usable": usable,
        },
    )


@cache
def _supports(attention: str, device: torch.device, precision: torch.dtype, masked: bool) -> bool:
    """Whether the kernel computes attention and its gradient for these inputs."""
    query = torch.zeros(1, 1, TOKENS, HEAD_SIZE, device=device, dtype=precision, requires_grad=True)
    mask = torch.ones(1, 1, 1, TOKENS, device=device, dtype=torch.bool) if masked else None
    try:
        with torch.enable_grad(), sdpa_kernel([KERNELS[attention]]):
            functional.scaled_dot_product_attention(query, query, query, attn_mask=mask).sum().backward()
    except RuntimeError:
        return False
    return True
