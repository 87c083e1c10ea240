"""Counts the parameters of networks that are built from their configs, on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.blocks import blocks_of
from tdmr1_core.models.meta_network import build_network

GATHERED_BLOCKS = 3
"""Blocks in memory at once: the one that is computed, its exchanged parts, and the next one, exchanged meanwhile."""


def count_parameters(kind: str, config: Mapping[str, Any]) -> int:
    """The size of a network of diffusers or transformers, with its buffers. Raises Tdmr1Error for an unknown class."""
    return _size(_build(kind, config))


def count_gathered(kind: str | type[nn.Module], config: Mapping[str, Any]) -> int:
    """The parameters that a pass of a sharded network holds beside its shard. Raises Tdmr1Error for an unknown class.

    `kind` is a class of diffusers or of a plugin, or the name of one of diffusers or transformers.
    What is not in a block is gathered for the whole pass, with a copy while it is exchanged.
    """
    network = _build(kind, config)
    blocks = [_size(block) for block in blocks_of(network)]
    rest = _size(network) - sum(blocks)
    return rest + max([rest, *(GATHERED_BLOCKS * size for size in blocks)])


def _size(network: nn.Module) -> int:
    return sum(weight.numel() for weight in (*network.parameters(), *network.buffers()))


def _build(kind: str | type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """A network on the meta device. Raises Tdmr1Error for an unknown class."""
    import diffusers
    import transformers

    network: nn.Module
    name = kind if isinstance(kind, str) else kind.__name__
    try:
        if not isinstance(kind, str) or hasattr(diffusers, kind):
            network = build_network(kind, config, "meta")
        else:
            wanted = getattr(transformers, kind)
            with torch.device("meta"):
                network = wanted(wanted.config_class.from_dict(dict(config)))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise Tdmr1Error(
            f"the size of a {name} cannot be computed from its config: {error}",
            "check the configs of the pipeline",
            code="plan-unavailable",
            values={"network": name, "reason": str(error)},
        ) from error
    return network
