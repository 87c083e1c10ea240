"""Who is active on the frozen backbone: the teacher has no adapter, every other role is a LoRA known by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.protocol import Backbone

TEACHER, REFERENCE = "teacher", "reference"
GENERATOR, FAKE, SURROGATE = "generator", "fake", "surrogate"
GENERATOR_EMA, SURROGATE_EMA = "generator_ema", "surrogate_ema"

LoraWeights = dict[str, Tensor]
"""Weights of one LoRA by canonical name, such as `transformer_blocks.0.attn.to_q.lora_A.weight`."""


@dataclass(frozen=True)
class LoraShape:
    """Rank, alpha and the modules (full names or suffixes) of a LoRA."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def peft(self) -> LoraConfig:
        """As PEFT's config; B starts at zero, so a new adapter changes nothing."""
        return LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets), init_lora_weights=True)


class Roles:
    """Named adapters on one backbone. `acting(role)` says who answers; gradients of roles never meet.

    `teacher` and `reference` are the bare backbone. The adapters' parameters are float32 (float64 on such a backbone).
    """

    def __init__(
        self, backbone: Backbone, shape: LoraShape, trained: tuple[str, ...], averaged: tuple[str, ...], *, seed: int
    ) -> None:
        self.backbone = backbone
        self.shape = shape
        self.trained = trained
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            torch.manual_seed(seed)
            try:
                for name in (*trained, *averaged):
                    backbone.network.add_adapter(shape.peft(), adapter_name=name)  # type: ignore[operator]
            except ValueError as error:
                raise Tdmr1Error(
                    f"the LoRA's target modules {', '.join(shape.targets)} do not fit the model: {error}",
                    "check the model entry's targets, or use the LoRA with the base model it was made for",
                ) from error
        self._layers = [layer for layer in backbone.network.modules() if isinstance(layer, BaseTunerLayer)]
        self._parameters = {name: self._collect(name) for name in (*trained, *averaged)}
        for weights in self._parameters.values():
            for weight in weights.values():
                weight.data = weight.data.to(backbone.dtype)
        self._acting: str | None = None
        self._activate(TEACHER)

    def _collect(self, name: str) -> dict[str, nn.Parameter]:
        part = f".{name}."
        named = self.backbone.network.named_parameters()
        return {key.replace(part, "."): weight for key, weight in named if part in key and "lora_" in key}

    @contextmanager
    def acting(self, role: str) -> Iterator[Backbone]:
        """The backbone with this role's adapter active; the former role comes back afterwards."""
        former = self._acting or TEACHER
        self._activate(role)
        try:
            yield self.backbone
        finally:
            self._activate(former)

    def again(self) -> AbstractContextManager[Backbone]:
        """The role that acts now, to act once more when a graph is recomputed."""
        return self.acting(self._acting or TEACHER)

    def _activate(self, role: str) -> None:
        if role == self._acting:
            return
        if role not in (TEACHER, REFERENCE, *self._parameters):
            raise KeyError(role)
        active = [role] if role in self._parameters else []
        for layer in self._layers:
            layer.set_adapter(active)
        # PEFT lets only the active adapter require a gradient; a graph recorded under another role would lose its own.
        for name, weights in self._parameters.items():
            for weight in weights.values():
                weight.requires_grad_(name in self.trained)
        self._acting = role

    @property
    def names(self) -> tuple[str, ...]:
        """Every role that has an adapter, trained ones first."""
        return tuple(self._parameters)

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """A role's LoRA parameters by canonical name."""
        return self._parameters[role]

    def weights(self, role: str) -> LoraWeights:
        """A detached copy of a role's LoRA weights by canonical name, on the CPU."""
        return {name: weight.detach().cpu().clone() for name, weight in self._parameters[role].items()}

    @torch.no_grad()
    def load(self, role: str, weights: Mapping[str, Tensor], source: str) -> None:
        """Put weights into a role. Raises Tdmr1Error where names or shapes differ, naming `source`."""
        own = self._parameters[role]
        missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
        if missing or extra:
            example = (missing or extra)[0]
            raise Tdmr1Error(
                f"{source} does not fit: {len(missing)} weights missing, {len(extra)} unknown, such as {example}",
                "use the LoRA with the base model it was made for",
            )
        for name, weight in own.items():
            if weight.shape != weights[name].shape:
                raise Tdmr1Error(
                    f"{source}: {name} is {tuple(weights[name].shape)}, the model needs {tuple(weight.shape)}",
                    "rank or width differ; use the LoRA with the base model it was made for",
                )
        for name, weight in own.items():
            weight.copy_(weights[name])

    @torch.no_grad()
    def average(self, average: str, role: str, decay: float) -> None:
        """Exponential moving average: average <- decay average + (1 - decay) role."""
        for name, weight in self._parameters[average].items():
            weight.lerp_(self._parameters[role][name], 1 - decay)

    def copy(self, source: str, target: str) -> None:
        """Give one role the weights of another."""
        self.load(target, self._parameters[source], source)
