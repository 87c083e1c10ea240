"""LoRA files for tiny networks, and the updates of the weights that diffusers and tdmr1 read from them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from support.lora_networks import ALL_KINDS
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.lora.files import LoraFile, read_lora
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork

Updates = dict[str, Tensor]
"""The change of the weight of each module of diffusers, in float64."""

NETWORKS = {name: MetaNetwork(FAMILIES[name], config) for name, (_, config) in ALL_KINDS.items()}


@dataclass(frozen=True)
class Trained:
    """The trained LoRA of one module. Without alpha its scale is 1."""

    down: Tensor  # (rank, in)
    up: Tensor  # (out, rank)
    alpha: float | None = None

    @property
    def update(self) -> Tensor:
        """The change of the weight that the training tool applied."""
        scale = 1.0 if self.alpha is None else self.alpha / len(self.down)
        return scale * self.up.double() @ self.down.double()


def trained(
    family: str, *modules: str, rank: int = 2, alpha: float | None = None, dtype: torch.dtype = torch.float32
) -> Trained:
    """A random LoRA of the module, or of several that the original code fuses."""
    shapes = [NETWORKS[family].linears[module] for module in modules]
    down, up = torch.randn(rank, shapes[0][1]), torch.randn(sum(rows for rows, _ in shapes), rank)
    return Trained(down.to(dtype), up.to(dtype), alpha)


def tensors(lora: Trained, key: str, parts: str = "lora_down lora_up") -> dict[str, Tensor]:
    """The tensors of a LoRA. `parts` are the names of its two matrices."""
    down, up = parts.split()
    found = {f"{key}.{down}.weight": lora.down, f"{key}.{up}.weight": lora.up}
    return found if lora.alpha is None else found | {f"{key}.alpha": torch.tensor(lora.alpha)}


def save(path: Path, content: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a LoRA file: safetensors, or torch.save for another suffix."""
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in content.items()}, path, metadata)
    else:
        torch.save(dict(content), path)
    return path


def read(family: str, path: Path, **options: Any) -> LoraFile:
    """Read a file with tdmr1."""
    return read_lora(path, NETWORKS[family], LoraShape(4, 8.0, FAMILIES[family].targets), **options)


def read_updates(lora: LoraFile) -> Updates:
    """The updates of a file that tdmr1 read."""
    scale = lora.shape.alpha / lora.shape.rank
    modules = {name.rsplit(".lora_", 1)[0] for name in lora.weights}
    pairs = {each: [lora.weights[f"{each}.lora_{part}.weight"].double() for part in "BA"] for each in modules}
    return {module: scale * up @ down for module, (up, down) in pairs.items()}


def pipeline(family: str, **components: nn.Module) -> Any:
    """A pipeline of diffusers with a tiny network. All other components but those given are None."""
    kind, config = ALL_KINDS[family]
    created = getattr(diffusers, FAMILIES[family].pipeline)
    parameters = inspect.signature(created).parameters.values()
    missing = {each.name: None for each in parameters if each.default is each.empty}
    given = {"transformer": kind(**config), "scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}
    return created(**missing | given | components)


def loaded_updates(pipe: Any, path: Path) -> Updates:
    """The updates of a file that diffusers loads into the network of a pipeline; it is unloaded again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pipe.load_lora_weights(path, adapter_name="loaded")
            return network_updates(pipe.transformer, "loaded")
        finally:
            pipe.unload_lora_weights()


def network_updates(network: nn.Module, adapter: str) -> Updates:
    """The updates of all modules that have this adapter, computed from its matrices."""
    layers = {name: each for name, each in network.named_modules() if isinstance(each, LoraLayer)}
    return {
        name: layer.scaling[adapter]
        * (layer.lora_B[adapter].weight.detach().double() @ layer.lora_A[adapter].weight.detach().double())
        for name, layer in layers.items()
        if adapter in layer.lora_A
    }


def assert_same(found: Updates, wanted: Updates) -> None:
    """The same modules have the same updates."""
    assert found.keys() == wanted.keys()
    for module, update in wanted.items():
        torch.testing.assert_close(found[module], update, rtol=1e-6, atol=1e-6)
