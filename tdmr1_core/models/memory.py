"""Ways to hold a model in less memory, at the price of time. None of them changes what is learnt beyond rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.protocol import Backbone
from tdmr1_core.models.roles import Roles

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def checkpoint_gradients(roles: Roles) -> None:
    """Recompute each block in the backward pass instead of keeping what it computed, under the role it ran under."""

    def run(block: Any, *arguments: Any) -> Any:
        again = roles.again()
        return checkpoint(block, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), again))

    network: Any = roles.backbone.network
    if not getattr(network, "_supports_gradient_checkpointing", False):
        raise Tdmr1Error(
            f"{type(network).__name__} has no gradient checkpointing", "leave memory.gradient_checkpointing off"
        )
    network.enable_gradient_checkpointing(run)


def spare_decoder(backbone: Backbone, how: Literal["sliced", "tiled"]) -> None:
    """Decode picture by picture, or also tile by tile, which shows at the seams of very large pictures."""
    vae: Any = backbone.pipeline.vae  # type: ignore[attr-defined]
    vae.enable_slicing()
    if how == "tiled":
        vae.enable_tiling()


def compile_blocks(backbone: Backbone) -> None:
    """Compile the repeated blocks of the network (torch.compile), which takes minutes at first and saves time later."""
    network: Any = backbone.network
    network.compile_repeated_blocks()


@contextmanager
def encoders_on_device(backbone: Backbone) -> Iterator[None]:
    """The text encoders on the device meanwhile, and afterwards on the CPU."""
    encoders = _encoders(backbone)
    for encoder in encoders:
        encoder.to(backbone.device)
    try:
        yield
    finally:
        for encoder in encoders:
            encoder.to("cpu")
        if backbone.device.type == "cuda":
            torch.cuda.empty_cache()


def encoder_identity(backbone: Backbone) -> list[str]:
    """What tells the text encoders from others: names, shapes and a few numbers of every weight."""
    return [
        f"{name} {weight.dtype} {tuple(weight.shape)} {weight.flatten()[:4].tolist()}"
        for encoder in _encoders(backbone)
        for name, weight in encoder.state_dict().items()
    ]


def _encoders(backbone: Backbone) -> list[nn.Module]:
    pipeline = backbone.pipeline  # type: ignore[attr-defined]
    found = [getattr(pipeline, name, None) for name in ENCODERS]
    return [encoder for encoder in found if encoder is not None]
