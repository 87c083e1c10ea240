"""Who is active on the frozen backbone: the teacher has no adapter, every other role is a LoRA known by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.backbone import Backbone

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

    def misfit(self, error: ValueError) -> Tdmr1Error:
        """What is said of a network that has none of the target modules."""
        shown = ", ".join(self.targets[:8]) + (", …" if len(self.targets) > 8 else "")
        return Tdmr1Error(
            f"the LoRA's target modules {shown} do not fit the model: {error}",
            "check the model entry's targets, or use the LoRA with the base model it was made for",
        )


class Roles:
    """Named adapters on one or two backbones. `acting(role)` says who answers; gradients of roles never meet.

    `teacher` and `reference` are a bare backbone. The adapters' parameters are float32 (float64 on such a backbone).
    Where the few-step model is a whole checkpoint of its own, its multi-step teacher can be a second backbone: the
    generator stays on the first, and everything that tells a score (teacher, reference, fake, surrogate) is the second.
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
    ) -> None:
        self.backbone = backbone
        self.shape = shape
        self.trained = trained
        self._scores = teacher or backbone
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            torch.manual_seed(seed)
            try:
                for name in (*trained, *averaged):
                    self.backbone_of(name).network.add_adapter(shape.peft(), adapter_name=name)  # type: ignore[operator]
            except ValueError as error:
                raise shape.misfit(error) from error
        self._layers = {home: _lora_layers(home.network) for home in (self._scores, backbone)}
        self._parameters: dict[str, dict[str, nn.Parameter]] = {name: {} for name in (*trained, *averaged)}
        self.refresh()
        for name, weights in self._parameters.items():
            for weight in weights.values():
                weight.data = weight.data.to(self.backbone_of(name).dtype)
        self._acting: dict[Backbone, str] = {}
        for home in self._layers:
            self._activate(TEACHER, home)

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """Each of them once, the one that tells scores first."""
        return tuple(self._layers)

    def backbone_of(self, role: str) -> Backbone:
        """The backbone that a role is on."""
        return self.backbone if role in (GENERATOR, GENERATOR_EMA) else self._scores

    def refresh(self) -> None:
        """Find every role's parameters in the networks: once more where they were replaced there."""
        self._parameters = {name: self._found(name) for name in self._parameters}

    def _found(self, name: str) -> dict[str, nn.Parameter]:
        part = f".{name}."
        named = self.backbone_of(name).network.named_parameters()
        return {key.replace(part, "."): weight for key, weight in named if part in key and "lora_" in key}

    @contextmanager
    def acting(self, role: str) -> Iterator[Backbone]:
        """The role's backbone with its adapter active; the former role comes back afterwards."""
        if role not in (TEACHER, REFERENCE, *self._parameters):
            raise KeyError(role)
        with self._active(role, self.backbone_of(role)) as home:
            yield home

    def reactivate(self, home: Backbone) -> AbstractContextManager[Backbone]:
        """The role that acts on a backbone now, to act once more when a graph is recomputed."""
        return self._active(self._acting[home], home)

    @contextmanager
    def _active(self, role: str, home: Backbone) -> Iterator[Backbone]:
        former = self._acting[home]
        self._activate(role, home)
        try:
            yield home
        finally:
            self._activate(former, home)

    def _activate(self, role: str, home: Backbone) -> None:
        if role == self._acting.get(home):
            return
        active = [role] if role in self._parameters else []
        for layer in self._layers[home]:
            layer.set_adapter(active)
        # PEFT lets only the active adapter require a gradient; a graph recorded under another role would lose its own.
        for name, weights in self._parameters.items():
            for weight in weights.values():
                weight.requires_grad_(name in self.trained)
        self._acting[home] = role

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

    def peft_config(self, role: str) -> dict[str, Any]:
        """PEFT's config of a role's adapter as plain data."""
        configs = self.backbone_of(role).network.peft_config
        return dict(configs[role].to_dict())  # type: ignore[index,union-attr]


def _lora_layers(network: nn.Module) -> list[BaseTunerLayer]:
    return [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]
