"""Peak memory and FLOPs of one update, measured by running it under FakeTensorMode, without weights.

The update runs the real stage on a network of the real shape. Live bytes are counted as tensors are created and freed,
which includes autocast copies, casts of LoRA weights and recomputed blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.memory import enable_gradient_checkpointing
from tdmr1_core.models.meta_network import build_network
from tdmr1_core.models.pipeline import PipelineBackbone
from tdmr1_core.models.roles import GENERATOR
from tdmr1_core.planning.sizes import Update
from tdmr1_core.records import Conditioning, Groups, Prompt, Trajectory
from tdmr1_core.stages.prompt_encoder import size_of
from tdmr1_rewards.errors import one_line


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors created in this mode: `live` is the current sum, `peak` the maximum.

    The weights of the modules `known` are not counted.
    """

    def __init__(self, *known: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()
        for module in known:
            for weight in (*module.parameters(), *module.buffers()):
                self._count(weight, counted=False)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._count(value, counted=True)
        return result

    def _count(self, tensor: Tensor, *, counted: bool) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return
        size = storage.nbytes() if counted else 0
        self._seen.add(storage._cdata)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, storage._cdata, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class FusedKernels:
    """Replaces attention by a version that stores no attention matrix, as fused kernels do, and counts its FLOPs.

    With `gpu`, layer norms under autocast run in float32, as on GPUs. Functions of torch are patched because dispatch
    modes do not reach blocks that are recomputed.
    """

    def __init__(self, *, gpu: bool) -> None:
        self.operations = 0.0
        self._gpu = gpu

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Within the context torch uses these functions."""
        with (
            patch.object(functional, "scaled_dot_product_attention", self._attention),
            patch.object(functional, "layer_norm", partial(self._layer_norm, functional.layer_norm)),
        ):
            yield

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        self.operations += 4.0 * query.numel() * key.shape[-2]
        result: Tensor = _Attention.apply(query, key, value)
        return result

    def _layer_norm(self, original: Callable[..., Tensor], tensor: Tensor, *arguments: Any, **named: Any) -> Tensor:
        in_float32 = self._gpu and torch.is_autocast_enabled("cpu")
        return original(tensor.float() if in_float32 else tensor, *arguments, **named)


class _Attention(torch.autograd.Function):
    """Attention whose result has the right shape but no values. Stores query, key, value and result for backward."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = torch.empty_like(query)
        context.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in context.saved_tensors[:3])


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
    """Run the generator update, the largest of an iteration, for `images` images and prompts of `tokens` tokens.

    `latent_shape` is (C, H, W). Raises Tdmr1Error if the network cannot be built or run.
    """
    # A quantized optimizer needs tensors with values; its states are not part of an update.
    config = config.model_copy(update={"memory": config.memory.model_copy(update={"optimizer": "none"})})
    with _translate_errors():
        backbone = _bare_backbone(config, family, denoiser, tokens)
        network = backbone.network
        parameters = sum(weight.numel() for weight in (*network.parameters(), *network.buffers()))
        linear = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
        with torch.device("meta"):
            roles = build_roles(config, backbone, shape)
        if config.memory.recomputes:
            enable_gradient_checkpointing(roles)
    kernels = FusedKernels(gpu=gpu)
    with _translate_errors(), FakeTensorMode(), kernels.patched():
        _to_fake_cpu(network)
        roles.refresh()
        backbone.unconditional = _text_conditioning(backbone, tokens, next(network.parameters()).dtype)
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
    lora_parameters = sum(map(Tensor.numel, role.parameters.values()))
    return Update(parameters, linear, lora_parameters, operations, held.peak, size_of(backbone.unconditional))


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate the errors of a network that cannot be built or run to Tdmr1Error."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, OverflowError) as error:
        reason = one_line(str(error))
        raise Tdmr1Error(
            f"this model cannot be planned, because its network cannot be run: {reason}",
            "check the configs of the model, model.height and model.width",
            code="plan-unavailable",
            values={"reason": reason},
        ) from error


def _bare_backbone(config: RunConfig, family: Family, denoiser: Mapping[str, Any], tokens: int) -> PipelineBackbone:
    """The backbone of a family with a denoiser on the meta device and no other part."""
    precision = PRECISIONS[config.model.precision]
    network = build_network(family.find_class(family.transformer), denoiser, "meta")
    nn.Module.to(network, dtype=precision)  # the `to` of diffusers warns about parts kept in float32
    network.to = lambda *_, **__: network  # type: ignore[method-assign]
    encoders = dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3"))
    pipeline = SimpleNamespace(transformer=network, vae=nn.Identity(), **encoders)
    return backbone_class(family)(pipeline, device=torch.device("cpu"), precision=precision, max_sequence_length=tokens)


def _to_fake_cpu(network: nn.Module) -> None:
    """Replace meta tensors by fake CPU tensors, because autocast applies to those only."""
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            fake = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
            setattr(module, name, nn.Parameter(fake, weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))
        for name, table in list(vars(module).items()):  # the positions of Qwen-Image are neither
            if isinstance(table, Tensor):
                setattr(module, name, torch.empty(table.shape, dtype=table.dtype, device="cpu"))


def _text_conditioning(backbone: PipelineBackbone, tokens: int, dtype: torch.dtype) -> Conditioning:
    width, pooled = backbone.text_widths(dict(backbone.pipeline.transformer.config))
    return Conditioning(torch.empty(1, tokens, width, dtype=dtype), torch.empty(1, pooled, dtype=dtype))


def _trajectory(backbone: Backbone, images: int, latent_shape: tuple[int, int, int]) -> Trajectory:
    groups = Groups(0, (Prompt("", {}),), images)
    latents = torch.empty(2, images, *latent_shape, dtype=backbone.dtype)
    sigmas = torch.ones(2, dtype=torch.float64)
    return Trajectory(groups, latents, sigmas, backbone.unconditional, None, stored_velocity=True, generator_updates=0)
