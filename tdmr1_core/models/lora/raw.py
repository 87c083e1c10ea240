"""The content of a LoRA file as it is stored: tensors with or without names, and the settings in its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora.key_names import parse_key


@dataclass(frozen=True)
class RawLora:
    """The tensors of a file, by key or as a list without names, and its metadata."""

    tensors: dict[str, Tensor] | list[Tensor]
    config: Mapping[str, Any]
    """PEFT's adapter config; empty if there is none."""
    network_alpha: float | None = None
    """Kohya's record of the alpha that the whole network was trained with."""

    @cached_property
    def stores_alphas(self) -> bool:
        """Whether at least one module has its alpha as a tensor."""
        parsed = [] if isinstance(self.tensors, list) else [parse_key(key) for key in self.tensors]
        return any(key is not None and key.part == "alpha" for key in parsed)


def widen(name: str, tensor: Tensor, path: Path) -> Tensor:
    """The same tensor in float32, or in float64 where it already is, without its gradient.

    `name` describes it in the error. Raises Tdmr1Error for a tensor that is not a dense one of floating-point numbers.
    """
    scalar = tensor.numel() == 1 and not tensor.is_complex()  # an alpha can be an integer
    try:
        if tensor.layout == torch.strided and not tensor.is_meta and (tensor.is_floating_point() or scalar):
            return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()
    except (RuntimeError, NotImplementedError):  # packed floating-point types of 4 bits
        pass
    kind = f"{tensor.dtype}".removeprefix("torch.")
    layout = "no data" if tensor.is_meta else f"{tensor.layout}".removeprefix("torch.")
    raise Tdmr1Error(
        f"{name} of {path} holds {kind} numbers ({layout}), which cannot be converted to float32",
        "export the LoRA again with dense float32, float16, bfloat16 or float8 tensors",
        code="lora-unsupported",
        values={"path": str(path), "tensor": name, "dtype": kind, "layout": layout},
    )
