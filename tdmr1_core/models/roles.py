"""The roles on the frozen backbones. Teacher and reference have no adapter; every other role is a named LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.backbone import Backbone
from tdmr1_core.models.lora.merged import MergedLinear
from tdmr1_core.models.lora.shape import LoraInit, LoraShape

TEACHER, REFERENCE = "teacher", "reference"
GENERATOR, FAKE, SURROGATE = "generator", "fake", "surrogate"
GENERATOR_EMA, SURROGATE_EMA = "generator_ema", "surrogate_ema"

LoraWeights = dict[str, Tensor]
"""Weights of one LoRA by canonical name, such as `transformer_blocks.0.attn.to_q.lora_A.weight`."""


class Roles:
    """Named adapters on one or two backbones. Within `acting(role)` a backbone computes with the adapter of the role.

    The roles "teacher" and "reference" use no adapter. Adapter parameters have the dtype of latents (float32, float64).
    If the few-step model is a full checkpoint, its multi-step teacher can be a second backbone: the generator is then
    on the first, and all other roles (teacher, reference, fake score, surrogate) are on the second. The gradient of a
    role never reaches the parameters of another.

    With `merged`, linear layers compute with the sum of weight and LoRA (`MergedLinear`), otherwise as PEFT does.
    """

    def __init__(
        self,
        backbone: Backbone,
        shape: LoraShape,
        trained: tuple[str, ...],
        averaged: tuple[str, ...],
        *,
        seed: int,
        teacher: Backbone | None = None,
        init: LoraInit = "kaiming",
        merged: bool = False,
    ) -> None:
        self.backbone = backbone
        self.shape = shape
        self.trained = trained
        self.backward_pass: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
        """A context for the backward pass of a role, which processes with sharded networks enter together."""
        self._scores = teacher or backbone
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            torch.manual_seed(seed)
            config = shape.peft(init)
            if merged:
                config._register_custom_module({nn.Linear: MergedLinear})
            networks: dict[str, Any] = {name: self.backbone_of(name).network for name in (*trained, *averaged)}
            try:
                for name, network in networks.items():
                    network.add_adapter(copy(config), adapter_name=name)
            except ValueError as error:
                raise shape.targets_error(error) from error
        self._layers = {each: _lora_layers(each.network) for each in (self._scores, backbone)}
        self._parameters: dict[str, dict[str, nn.Parameter]] = {name: {} for name in (*trained, *averaged)}
        self._acting: dict[Backbone, str] = {}
        self.refresh()
        for name, weights in self._parameters.items():
            for weight in weights.values():
                weight.data = weight.data.to(self.backbone_of(name).dtype)
        for each in self._layers:
            self._activate(TEACHER, each)

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """The distinct backbones. The second backbone, if there is one, comes first."""
        return tuple(self._layers)

    def backbone_of(self, role: str) -> Backbone:
        """The backbone of a role."""
        return self.backbone if role in (GENERATOR, GENERATOR_EMA) else self._scores

    def refresh(self) -> None:
        """Look up the parameters of every role in the networks, for example after they were replaced there."""
        self._parameters = {name: self._find_parameters(name) for name in self._parameters}
        for backbone, role in self._acting.items():
            self._activate(role, backbone)

    def _find_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The LoRA parameters of a role in its network, by canonical name."""
        part = f".{name}."
        named = self.backbone_of(name).network.named_parameters()
        return {key.replace(part, "."): weight for key, weight in named if part in key and "lora_" in key}

    @contextmanager
    def acting(self, role: str) -> Iterator[Backbone]:
        """The backbone of a role, with its adapter active. Restores the previous role afterwards.

        Raises KeyError for an unknown role.
        """
        if role not in (TEACHER, REFERENCE, *self._parameters):
            raise KeyError(role)
        with self._active(role, self.backbone_of(role)) as backbone:
            yield backbone

    def reactivate(self, backbone: Backbone) -> AbstractContextManager[Backbone]:
        """A context that activates the current role of a backbone again, when a forward pass is recomputed later."""
        return self._active(self._acting[backbone], backbone)

    @contextmanager
    def _active(self, role: str, backbone: Backbone) -> Iterator[Backbone]:
        previous = self._acting[backbone]
        if role == previous:
            yield backbone
            return
        self._activate(role, backbone)
        try:
            yield backbone
        finally:
            self._activate(previous, backbone)

    def _activate(self, role: str, backbone: Backbone) -> None:
        active = [role] if role in self._parameters else []
        for layer in self._layers[backbone]:
            layer.set_adapter(active)
        # PEFT's layers disable the gradients of inactive adapters; graphs of other roles would lose theirs.
        for name, weights in self._parameters.items():
            for weight in weights.values():
                weight.requires_grad_(name in self.trained)
        self._acting[backbone] = role

    @property
    def names(self) -> tuple[str, ...]:
        """All roles with an adapter, the trained ones first."""
        return tuple(self._parameters)

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The LoRA parameters of a role, by canonical name."""
        return self._parameters[role]

    def weights(self, role: str) -> LoraWeights:
        """A detached copy of the LoRA weights of a role on the CPU, by canonical name."""
        return {name: weight.detach().cpu().clone() for name, weight in self._parameters[role].items()}

    @torch.no_grad()
    def load(self, role: str, weights: Mapping[str, Tensor], source: str) -> None:
        """Copy weights into a role. Raises Tdmr1Error if names or shapes differ; `source` names them in the message."""
        parameters = self._parameters[role]
        missing, extra = sorted(parameters.keys() - weights.keys()), sorted(weights.keys() - parameters.keys())
        if missing or extra:
            example = (missing or extra)[0]
            raise Tdmr1Error(
                f"{source} does not fit the model: {len(missing)} weights are missing and {len(extra)} are unknown, "
                f"for example {example}",
                "use the LoRA with the base model that it was trained on",
                code="lora-mismatch",
                values={"source": source, "missing": len(missing), "unknown": len(extra), "example": example},
            )
        for name, weight in parameters.items():
            if weight.shape != weights[name].shape:
                found, expected = list(weights[name].shape), list(weight.shape)
                raise Tdmr1Error(
                    f"{source} does not fit the model: {name} has shape {tuple(found)}, expected {tuple(expected)}",
                    "use the LoRA with the base model that it was trained on, and with the same rank",
                    code="lora-mismatch",
                    values={"source": source, "weight": name, "found": found, "expected": expected},
                )
        for name, weight in parameters.items():
            weight.copy_(weights[name])

    @torch.no_grad()
    def average(self, average: str, role: str, decay: float) -> None:
        """Update an exponential moving average: average <- decay average + (1 - decay) role."""
        for name, weight in self._parameters[average].items():
            weight.lerp_(self._parameters[role][name], 1 - decay)

    def copy(self, source: str, target: str) -> None:
        """Copy the weights of role `source` into role `target`."""
        self.load(target, self._parameters[source], source)

    def peft_config(self, role: str) -> dict[str, Any]:
        """The PEFT config of the adapter of a role, as plain data."""
        configs = self.backbone_of(role).network.peft_config
        return dict(configs[role].to_dict())  # type: ignore[index,union-attr]


def _lora_layers(network: nn.Module) -> list[BaseTunerLayer]:
    return [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
