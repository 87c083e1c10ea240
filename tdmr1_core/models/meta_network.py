"""A network on the meta device: names and shapes of LoRA weights without loading weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tdmr1_core.models.families import Family
from tdmr1_core.models.lora.shape import LoraShape

_ADAPTER = "meta"


class MetaNetwork:
    """The denoiser of a family on the meta device, built from its config."""

    def __init__(self, family: Family, config: Mapping[str, Any]) -> None:
        self.family = family
        self._network = build_network(family.find_class(family.transformer), config, "meta")
        self.linears = {
            name: (module.out_features, module.in_features)
            for name, module in self._network.named_modules()
            if isinstance(module, nn.Linear)
        }
        """The linear layers, to which a LoRA can be added: the shape (out, in) of each weight."""

    def lora(self, shape: LoraShape) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights of a LoRA, in the order of the network's parameters.

        Raises Tdmr1Error if the network lacks the target modules.
        """
        network, part = self._network, f".{_ADAPTER}."
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                inject_adapter_in_model(shape.peft(), network, adapter_name=_ADAPTER, low_cpu_mem_usage=True)
            return {
                name.replace(part, "."): tuple(weight.shape)
                for name, weight in network.named_parameters()
                if part in name
            }
        except ValueError as error:
            raise shape.targets_error(error) from error
        finally:
            for module in network.modules():
                if isinstance(module, BaseTunerLayer):
                    module.delete_adapter(_ADAPTER)
            getattr(network, "peft_config", {}).pop(_ADAPTER, None)


def build_network(kind: Any, config: Mapping[str, Any], device: str) -> nn.Module:
    """Build a network from its config, with random weights or, on the meta device, without.

    `kind` is its class, or the name of a class of diffusers.
    """
    import diffusers

    with torch.device(device):
        network: nn.Module = (getattr(diffusers, kind) if isinstance(kind, str) else kind).from_config(dict(config))
    return network
