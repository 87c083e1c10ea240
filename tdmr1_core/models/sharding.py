"""Divides frozen networks among processes with FSDP2: each holds a part of every weight, and a pass gathers a block.

Denoisers and text encoders are sharded block by block: the items of their outermost `nn.ModuleList`s, then the rest as
one more block. LoRAs, their averages and optimizers are not sharded, and neither is the autoencoder. Gathered weights
have the same bits as those of a network that is not sharded.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from tdmr1_core.distributed import Processes
from tdmr1_core.models.backbone import Backbone
from tdmr1_core.models.blocks import blocks_of
from tdmr1_core.models.lockstep import Lockstep
from tdmr1_core.models.memory import encoder_identity
from tdmr1_core.models.roles import Roles
from tdmr1_core.records import Conditioning


class Sharding:
    """The sharded networks of a run: both denoisers, and the text encoders, which the backbones share.

    `latent_shape` is (C, H, W). The networks may be given on the CPU: each process moves only its part of the weights
    to its device. Call `start` before the first pass.
    """

    def __init__(self, roles: Roles, processes: Processes, latent_shape: tuple[int, int, int]) -> None:
        self._roles = roles
        self._latent_shape = latent_shape
        self._lockstep = Lockstep(processes)
        base = roles.backbones[0]
        self.encoder_identity = encoder_identity(base)
        """Of the text encoders, from weights that cannot be read any more."""
        mesh = DeviceMesh.from_group(distributed.distributed_c10d._get_default_group(), base.device.type)
        gather = _Gather(processes)
        for encoder in base.text_encoders():
            _shard(encoder, mesh, gather, base.device, set())
        for backbone in roles.backbones:
            names = [role for role in roles.names if roles.backbone_of(role) is backbone]
            adapters = {weight for role in names for weight in roles.parameters(role).values()}
            _shard(backbone.network, mesh, gather, base.device, adapters)
        self._add_operations()

    def start(self) -> None:
        """Keep the processes in step from now on, and encode the empty prompt. All processes call this together."""
        self._lockstep.start()
        for backbone in self._roles.backbones:
            _ = backbone.unconditional

    def _add_operations(self) -> None:
        """Add encoding, then the passes of each denoiser, then their backward passes, which follow all passes."""
        lockstep, base = self._lockstep, self._roles.backbones[0]
        encode = base.encode
        encoding = lockstep.add(lambda: _discard(encode([""])))
        passes = {each: _Passes(self._roles, each, self._latent_shape) for each in self._roles.backbones}
        for backbone, each in passes.items():
            _wrap(backbone, lockstep, encoding, lockstep.add(each.evaluate), lockstep.add(each.record))
        backward = {backbone: lockstep.add(each.differentiate) for backbone, each in passes.items()}

        def backward_pass(role: str) -> AbstractContextManager[None]:
            return lockstep.operation(backward[self._roles.backbone_of(role)])

        self._roles.backward_pass = backward_pass


class _Gather:
    """Gathers the weights of a block. On the CPU, waiting notices lost processes and signals."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for the gathered weights."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Gather `input_tensor` of every process into `output_tensor`."""
        on_gpu = output_tensor.is_cuda
        work = distributed.all_gather_into_tensor(
            output_tensor, input_tensor, group=group, async_op=async_op or not on_gpu
        )
        if on_gpu:
            return work
        self._processes.wait_for(work)
        return None


class _Passes:
    """Takes part in the passes of a denoiser that other processes make."""

    def __init__(self, roles: Roles, backbone: Backbone, latent_shape: tuple[int, int, int]) -> None:
        self._roles = roles
        self._backbone = backbone
        self._role = next(role for role in roles.trained if roles.backbone_of(role) is backbone)
        self._latent_shape = latent_shape
        self._recorded: list[Tensor] = []
        """The results of passes with gradient, until the backward pass."""

    def evaluate(self) -> None:
        """A pass without gradient."""
        with torch.no_grad():
            self._velocity()

    def record(self) -> None:
        """A pass with gradient, as of a trained role: every block has a LoRA."""
        with torch.enable_grad(), self._roles.acting(self._role):
            self._recorded.append(self._velocity())

    def differentiate(self) -> None:
        """The backward pass of the first recorded pass."""
        weights = list(self._roles.parameters(self._role).values())
        torch.autograd.grad(self._recorded.pop(0).sum(), weights, allow_unused=True)

    def _velocity(self) -> Tensor:
        """One forward pass for a single image, (1, C, H, W)."""
        backbone = self._backbone
        latents = torch.zeros(1, *self._latent_shape, dtype=backbone.dtype, device=backbone.device)
        level = torch.ones(1, dtype=backbone.dtype, device=backbone.device)
        return backbone.velocity(latents, level, backbone.unconditional.to(backbone.device))


def local_bytes(network: nn.Module) -> int:
    """Bytes of the frozen weights that this process holds between two passes, without LoRAs."""
    frozen = [weight for name, weight in network.named_parameters() if "lora_" not in name]
    local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in frozen]
    return sum({weight.untyped_storage()._cdata: weight.untyped_storage().nbytes() for weight in local}.values())


def is_sharded(network: nn.Module) -> bool:
    """Whether the weights of a network are divided among processes."""
    return isinstance(network, FSDPModule)


def _shard(
    network: nn.Module, mesh: DeviceMesh, gather: _Gather, device: torch.device, adapters: Set[nn.Parameter]
) -> None:
    """Shard the blocks of a network and the rest of it. Scalars and the weights `adapters` stay whole."""
    whole = {*adapters, *(weight for weight in network.parameters() if weight.ndim == 0)}
    for block in (*blocks_of(network), network):
        if any(weight not in whole for weight in block.parameters()):
            fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_all_gather(gather)  # type: ignore[arg-type]
            _keep_name(type(module))
    for weight in whole:
        weight.data = weight.data.to(device)


def _keep_name(kind: type) -> None:
    """Give a class that `fully_shard` has derived the name of its base. transformers finds output recorders by name."""
    base = next(each for each in kind.__mro__ if not issubclass(each, FSDPModule))
    kind.__module__, kind.__name__, kind.__qualname__ = base.__module__, base.__name__, base.__qualname__


def _discard(_: object) -> None:
    """Use no result."""


def _wrap(backbone: Backbone, lockstep: Lockstep, encoding: int, plain: int, recorded: int) -> None:
    """Encode prompts and evaluate the network only as operations of all processes."""
    encode, velocity = backbone.encode, backbone.velocity

    def encode_together(prompts: Sequence[str]) -> Conditioning:
        with lockstep.operation(encoding):
            return encode(prompts)

    def velocity_together(*arguments: Any, **named: Any) -> Tensor:
        with lockstep.operation(recorded if torch.is_grad_enabled() else plain):
            return velocity(*arguments, **named)

    backbone.encode = encode_together  # type: ignore[method-assign]
    backbone.velocity = velocity_together  # type: ignore[method-assign]
