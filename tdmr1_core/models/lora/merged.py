"""A linear layer with LoRAs that computes one product with W + s B A. PEFT stores the LoRAs and defines the result."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional

LoraPair = tuple[nn.Parameter, nn.Parameter, float]
"""A (r, in), B (out, r) and the scale s = alpha / r."""


class MergedLinear(Linear):
    """PEFT's LoRA layer with another forward pass: at most one adapter is active, without dropout.

    Activating an adapter changes no `requires_grad`. The tensors of the active adapter are an attribute, so that a
    compiled layer gets them as inputs and is not compiled again for each role.
    """

    active: LoraPair | None

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter, or none with an empty list."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._active_adapter = names
        self.active = None
        for name in names:
            self.active = (self.lora_A[name].weight, self.lora_B[name].weight, float(self.scaling[name]))

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """x (…, in) to (…, out)."""
        base = self.base_layer
        if self.active is None:
            return functional.linear(x, base.weight, base.bias)
        a, b, scale = self.active
        if not torch.is_grad_enabled():
            kind = _compute_dtype(x)
            bias = None if base.bias is None else base.bias.to(kind)
            with torch.autocast(x.device.type, enabled=False):
                return functional.linear(x.to(kind), merge(base.weight, a, b, scale).to(kind), bias)
        return MergedProduct.apply(x, base.weight, base.bias, a, b, scale)


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + s B A (out, in), in the dtype of A."""
    return torch.addmm(weight.to(a.dtype), b, a, alpha=scale)


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class MergedProduct(torch.autograd.Function):
    """x (W + s B A)^T + bias. The backward pass has products of rank r and no gradient of W.

    With g (n, out) the gradient of the output and x (n, in): dA = s (g B)^T x, dB = s g^T (x A^T), dx = g (W + s B A).
    The merged weight is computed again in the backward pass instead of being stored.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """x (…, in) to (…, out)."""
        kind = _compute_dtype(x)
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale, ctx.kind = scale, kind
        with torch.autocast(x.device.type, enabled=False):
            merged = merge(weight, a, b, scale).to(kind)
            return functional.linear(x.to(kind), merged, None if bias is None else bias.to(kind))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, A and B."""
        x, weight, a, b = ctx.saved_tensors
        scale, kind = ctx.scale, ctx.kind
        with torch.autocast(x.device.type, enabled=False):
            rows = gradient.reshape(-1, gradient.shape[-1]).to(kind)  # (n, out)
            inputs = x.reshape(-1, x.shape[-1]).to(kind)  # (n, in)
            d_x = d_a = d_b = None
            if ctx.needs_input_grad[0]:
                d_x = (rows @ merge(weight, a, b, scale).to(kind)).view(x.shape).to(x.dtype)
            if ctx.needs_input_grad[3]:
                d_a = ((rows @ b.to(kind)).T @ inputs).to(a.dtype).mul_(scale)
            if ctx.needs_input_grad[4]:
                d_b = (rows.T @ (inputs @ a.to(kind).T)).to(b.dtype).mul_(scale)
        return d_x, None, None, d_a, d_b, None
