"""Reduces memory at the cost of time: gradient checkpointing, decoding in parts, compilation.

Results change only by rounding, except with tiled decoding, which can show seams in the images.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.backbone import Backbone
from tdmr1_core.models.roles import Roles
from tdmr1_core.versions import versions

GRADIENT_MODES, BATCH_KINDS = 2, 3
"""Variants that torch.compile distinguishes: with or without gradient; batch size 1, the first other size, any size."""
ENCODING = ("diffusers", "transformers")
"""The packages that affect how prompts are encoded."""


def enable_gradient_checkpointing(roles: Roles) -> None:
    """Recompute the blocks in the backward pass instead of storing activations.

    The recomputation uses the role and the attention kernel of the forward pass.
    Raises Tdmr1Error for a network without gradient checkpointing.
    """
    for backbone in roles.backbones:
        network: Any = backbone.network
        if not getattr(network, "_supports_gradient_checkpointing", False):
            name = type(network).__name__
            raise Tdmr1Error(
                f"the network {name} does not support gradient checkpointing",
                "set memory.gradient_checkpointing to false",
                code="model-unsupported",
                values={"network": name},
            )
        network.enable_gradient_checkpointing(partial(_checkpointed, roles, backbone))


def _checkpointed(roles: Roles, backbone: Backbone, block: nn.Module, *arguments: Any) -> Any:
    same_role = roles.reactivate(backbone)
    recomputing = _both(same_role, backbone.attention())
    return checkpoint(block, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), recomputing))


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


def save_vae_memory(backbone: Backbone, how: Literal["sliced", "tiled"]) -> None:
    """Decode one image at a time ("sliced"), or also in tiles ("tiled"), which can show seams in large images."""
    vae: Any = backbone.pipeline.vae  # type: ignore[attr-defined]
    vae.enable_slicing()
    if how == "tiled":
        vae.enable_tiling()


def check_compiler(device: torch.device) -> None:
    """Raise Tdmr1Error if torch.compile lacks the C++ compiler that it calls for the CPU: CXX, by default g++."""
    program = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(program) is None:
        raise Tdmr1Error(
            f"memory.compile needs a C++ compiler on the CPU, and {program} is not installed",
            f"install {program}, name another compiler in the environment variable CXX, or set memory.compile to false",
            code="dependency-missing",
            values={"program": program},
        )


def compile_blocks(roles: Roles) -> None:
    """Compile the repeated blocks of the networks with torch.compile, which takes minutes at the first passes.

    With merged LoRAs all roles and all blocks of one kind share their compiled variants, because weights are inputs.
    With PEFT's layers each role has its own. By default torch keeps only a few variants of a class of blocks and runs
    further ones uncompiled. The limit is raised to one variant per block, role, gradient mode and kind of batch.
    """
    blocks = [
        block
        for backbone in roles.backbones
        for part in backbone.network.children()
        if isinstance(part, nn.ModuleList)
        for block in part
    ]
    settings: Any = torch._dynamo.config
    variants = len(blocks) * (len(roles.names) + 1) * GRADIENT_MODES * BATCH_KINDS
    settings.recompile_limit = max(settings.recompile_limit, variants)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, variants)
    for block in blocks:
        block.compile()


def encoder_identity(backbone: Backbone) -> list[str]:
    """Everything that affects how prompts are encoded: package versions, tokenizers, and samples of every weight."""
    return [
        *(f"{name} {number}" for name, number in versions().items() if name in ENCODING),
        *(_digest(tokenizer) for tokenizer in backbone.tokenizers()),
        *_weights(backbone),
    ]


def _digest(tokenizer: Any) -> str:
    """A hash of the files that `save_pretrained` writes for a tokenizer, including its chat template.

    The truncation and padding of its last call are not part of it.
    """
    digest, tokenizer = hashlib.sha256(), deepcopy(tokenizer)
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()
        backend.no_padding()
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(file for file in Path(folder).rglob("*") if file.is_file()):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _weights(backbone: Backbone) -> list[str]:
    """Name, dtype, shape and first values of every weight of the text encoders."""
    return [
        f"{name} {weight.dtype} {tuple(weight.shape)} {weight.flatten()[:4].tolist()}"
        for encoder in backbone.text_encoders()
        for name, weight in encoder.state_dict().items()
    ]
