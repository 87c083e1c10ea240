"""The repeated blocks of a network, which are sharded one by one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def blocks_of(network: nn.Module) -> Iterator[nn.Module]:
    """The items of the outermost `nn.ModuleList`s of a network, in the order of their registration."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks_of(child)
