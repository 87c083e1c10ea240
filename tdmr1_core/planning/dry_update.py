"""What an update takes, found by doing it on tensors without numbers: the real stage, of the real network's shape.

Everything that is held at once is counted as it comes and goes, with autocast, casts of LoRAs and recomputed blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from tdmr1_core.build.parts import PRECISIONS, build_generator, build_roles, build_trained
from tdmr1_core.config import RunConfig
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.backbone import Backbone
from tdmr1_core.models.families import Family
from tdmr1_core.models.loading import backbone_class
from tdmr1_core.models.memory import enable_gradient_checkpointing
from tdmr1_core.models.meta_network import build_network
from tdmr1_core.models.pipeline import PipelineBackbone
from tdmr1_core.models.roles import GENERATOR, LoraShape
from tdmr1_core.records import Conditioning, Groups, Prompt, Trajectory
from tdmr1_rewards.errors import one_line


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made meanwhile: those that are `live` now, and the most that were, `peak`."""

    def __init__(self, *known: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()
        for module in known:
            for weight in (*module.parameters(), *module.buffers()):
                self._watch(weight, counted=False)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        for value in tree_iter(answer):
            if isinstance(value, Tensor):
                self._watch(value, counted=True)
        return answer

    def _watch(self, tensor: Tensor, *, counted: bool) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return
        size = storage.nbytes() if counted else 0
        self._seen.add(storage._cdata)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class FusedKernels:
    """Attention that keeps no table of all pairs, as kernels do it, and its operations, which nobody else would count.

    With `gpu` also what autocast does on GPUs alone: layer norms in float32. They take the place of torch's own, since
    no mode of torch reaches into blocks that are recomputed.
    """

    def __init__(self, *, gpu: bool) -> None:
        self.operations = 0.0
        self._gpu = gpu

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let torch use them meanwhile."""
        with (
            patch.object(functional, "scaled_dot_product_attention", self._attention),
            patch.object(functional, "layer_norm", partial(self._layer_norm, functional.layer_norm)),
        ):
            yield

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        self.operations += 4.0 * query.numel() * key.shape[-2]
        answer: Tensor = _Attention.apply(query, key, value)
        return answer

    def _layer_norm(self, own: Callable[..., Tensor], tensor: Tensor, *arguments: Any, **named: Any) -> Tensor:
        single = self._gpu and torch.is_autocast_enabled("cpu")
        return own(tensor.float() if single else tensor, *arguments, **named)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        answer = torch.empty_like(query)
        context.save_for_backward(query, key, value, answer)
        return answer

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


@dataclass(frozen=True)
class Update:
    """What the generator's update of some images takes: numbers in the network and in its linear layers, operations a
    forward pass of one image, and the most bytes that are held at once.
    """

    parameters: int
    linear: int
    lora_parameters: int
    operations: float
    bytes: int


def dry_update(
    config: RunConfig,
    family: Family,
    denoiser: Mapping[str, Any],
    latent_shape: tuple[int, int, int],
    tokens: int,
    shape: LoraShape,
    *,
    images: int = 1,
    gpu: bool = True,
) -> Update:
    """Do the generator's update, the largest of an iteration, for some images with texts of `tokens` tokens.

    Its bytes are those beside weights and what is kept between updates. Raises Tdmr1Error where it can't be done.
    """
    with _without_numbers():
        backbone = _bare_backbone(config, family, denoiser, tokens)
        network = backbone.network
        parameters = sum(weight.numel() for weight in (*network.parameters(), *network.buffers()))
        linear = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
        with torch.device("meta"):
            roles = build_roles(config, backbone, shape)
        if config.memory.gradient_checkpointing:
            enable_gradient_checkpointing(roles)
    kernels = FusedKernels(gpu=gpu)
    with _without_numbers(), FakeTensorMode(), kernels.in_place():
        _fake(network)
        roles.refresh()
        backbone.unconditional = _text(denoiser, tokens, next(network.parameters()).dtype)
        role = build_trained(config, roles)[GENERATOR]
        stage = build_generator(config, roles, role)
        trajectory = _trajectory(backbone, images, latent_shape)
        rows = torch.zeros(images, dtype=torch.long)
        level = torch.ones(images, dtype=torch.float64)
        noise = torch.empty(images, *latent_shape, dtype=backbone.dtype)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            backbone.velocity(noise[:1], level[:1], backbone.unconditional)
        operations = counter.get_total_flops() + kernels.operations
        with LiveBytes(network) as held:
            terms = stage.losses(trajectory, rows, rows, level, level, noise, noise)
            role.accumulate(terms.total.sum())
    return Update(parameters, linear, sum(map(Tensor.numel, role.parameters.values())), operations, held.peak)


@contextmanager
def _without_numbers() -> Iterator[None]:
    """What a network without numbers stumbles over, as a sentence."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        told = one_line(str(error))
        raise Tdmr1Error(f"this model can't be planned: {told}", "see that its configs and the size fit") from error


def _bare_backbone(config: RunConfig, family: Family, denoiser: Mapping[str, Any], tokens: int) -> PipelineBackbone:
    """A family's backbone around a denoiser on the meta device, without any other part."""
    precision = PRECISIONS[config.model.precision]
    network = build_network(family.transformer, denoiser, "meta")
    nn.Module.to(network, dtype=precision)  # diffusers' own warns of parts to keep in float32, though there are none
    network.to = lambda *_, **__: network  # type: ignore[method-assign]
    encoders = dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3"))
    pipeline = SimpleNamespace(transformer=network, vae=nn.Identity(), **encoders)
    return backbone_class(family)(pipeline, device=torch.device("cpu"), precision=precision, max_sequence_length=tokens)


def _fake(network: nn.Module) -> None:
    """Put a network from the meta device on a CPU that holds no numbers, but to which autocast applies."""
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            fake = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
            setattr(module, name, nn.Parameter(fake, weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))


def text_widths(denoiser: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of a token's and of a pooled embedding that a denoiser takes, by its config."""
    return denoiser.get("joint_attention_dim") or denoiser["cap_feat_dim"], denoiser.get("pooled_projection_dim", 0)


def _text(denoiser: Mapping[str, Any], tokens: int, dtype: torch.dtype) -> Conditioning:
    width, pooled = text_widths(denoiser)
    return Conditioning(torch.empty(1, tokens, width, dtype=dtype), torch.empty(1, pooled, dtype=dtype))


def _trajectory(backbone: Backbone, images: int, latent_shape: tuple[int, int, int]) -> Trajectory:
    groups = Groups(0, (Prompt("", {}),), images)
    latents = torch.empty(2, images, *latent_shape, dtype=backbone.dtype)
    sigmas = torch.ones(2, dtype=torch.float64)
    return Trajectory(groups, latents, sigmas, backbone.unconditional, None, stored_velocity=True, generator_updates=0)
