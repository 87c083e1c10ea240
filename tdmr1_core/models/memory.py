"""Ways to hold a model in less memory, at the price of time.

None of them changes what is learnt beyond rounding, but for decoding in tiles, whose seams rewards may see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.backbone import Backbone
from tdmr1_core.models.quantization import is_quantized
from tdmr1_core.models.roles import Roles
from tdmr1_core.versions import versions

GRADIENT_MODES, BATCH_KINDS = 2, 3
"""With or without; a single image, the first number of them that is met, and any other number."""
ENCODING = ("diffusers", "transformers")
"""Packages that texts are encoded by."""


def enable_gradient_checkpointing(roles: Roles) -> None:
    """Recompute each block in the backward pass instead of keeping what it computed, under the role it ran under."""
    for home in roles.backbones:
        network: Any = home.network
        if not getattr(network, "_supports_gradient_checkpointing", False):
            raise Tdmr1Error(
                f"{type(network).__name__} has no gradient checkpointing", "leave memory.gradient_checkpointing off"
            )
        network.enable_gradient_checkpointing(partial(_checkpointed, roles, home))


def _checkpointed(roles: Roles, home: Backbone, block: nn.Module, *arguments: Any) -> Any:
    again = roles.reactivate(home)
    return checkpoint(block, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), again))


def save_vae_memory(backbone: Backbone, how: Literal["sliced", "tiled"]) -> None:
    """Decode picture by picture, or also tile by tile, which shows at the seams of very large pictures."""
    vae: Any = backbone.pipeline.vae  # type: ignore[attr-defined]
    vae.enable_slicing()
    if how == "tiled":
        vae.enable_tiling()


def compile_blocks(roles: Roles) -> None:
    """Compile the repeated blocks of the networks (torch.compile): minutes at first, and time saved later.

    Blocks of a class share their code, of which torch keeps few variants by default and then compiles no more: it is
    let keep one for each block, role, gradient mode and kind of batch.
    """
    blocks = [
        block
        for home in roles.backbones
        for part in home.network.children()
        if isinstance(part, nn.ModuleList)
        for block in part
    ]
    settings: Any = torch._dynamo.config
    variants = len(blocks) * (len(roles.names) + 1) * GRADIENT_MODES * BATCH_KINDS
    settings.recompile_limit = max(settings.recompile_limit, variants)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, variants)
    for block in blocks:
        block.compile()


@contextmanager
def encoders_on_device(backbone: Backbone, denoisers: Sequence[nn.Module]) -> Iterator[None]:
    """The text encoders on the device meanwhile and the denoisers on the CPU; afterwards the other way round.

    Denoisers in fewer bits stay where they are: they are small, and not made for moving.
    """
    encoders, movable = backbone.text_encoders(), [network for network in denoisers if not is_quantized(network)]
    try:
        _move(movable, "cpu")
        _move(encoders, backbone.device)
        yield
    finally:
        _move(encoders, "cpu")
        _move(movable, backbone.device)


def _move(networks: Sequence[nn.Module], where: torch.device | str) -> None:
    for network in networks:
        network.to(where)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def encoder_identity(backbone: Backbone) -> list[str]:
    """What texts are encoded by: packages, tokenizers, and names, shapes and a few numbers of every weight."""
    return [
        *(f"{name} {number}" for name, number in versions().items() if name in ENCODING),
        *(_digest(tokenizer) for tokenizer in backbone.tokenizers()),
        *_weights(backbone),
    ]


def _digest(tokenizer: Any) -> str:
    """Of the files that a tokenizer is saved as, its chat template among them."""
    digest = hashlib.sha256()
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(file for file in Path(folder).rglob("*") if file.is_file()):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _weights(backbone: Backbone) -> list[str]:
    return [
        f"{name} {weight.dtype} {tuple(weight.shape)} {weight.flatten()[:4].tolist()}"
        for encoder in backbone.text_encoders()
        for name, weight in encoder.state_dict().items()
    ]
