"""One trained role: its parameters, its AdamW, and how often it has stepped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tdmr1_core.models.quantization import bitsandbytes

if TYPE_CHECKING:
    from tdmr1_core.records import Groups


class NotFinite(Exception):
    """A loss or gradient was NaN or infinite: nothing was updated, and the gradient is cleared. It says which."""


class TrainedRole:
    """Collects gradients for a role over micro-batches and takes one clipped AdamW step at a time."""

    def __init__(
        self,
        name: str,
        parameters: dict[str, nn.Parameter],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
        max_grad_norm: float,
        eight_bit: bool = False,
    ) -> None:
        self.name = name
        self.parameters = parameters
        self.learning_rate = learning_rate
        self.updates = 0
        self._max_grad_norm = max_grad_norm
        self.broken: list[str] = []
        """What was not finite since the last step."""
        kind = bitsandbytes().optim.AdamW8bit if eight_bit else torch.optim.AdamW
        self.optimizer: torch.optim.Optimizer = kind(
            list(parameters.values()), lr=learning_rate, betas=betas, eps=epsilon, weight_decay=weight_decay
        )

    def accumulate(self, loss: Tensor) -> None:
        """Add a loss's gradient to what is collected; all of it, or none where memory runs out meanwhile."""
        weights = list(self.parameters.values())
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    def record_loss(self, loss: Tensor, groups: Groups, rows: Tensor) -> float:
        """The loss of a micro-batch, the images `rows`, as a number; one that is not finite is kept in mind."""
        value = loss.item()
        if not math.isfinite(value):
            first, last = groups.image_ids[int(rows[0])], groups.image_ids[int(rows[-1])]
            self.broken.append(f"the loss is {value} for images {first} to {last} of the batch")
        return value

    def discard(self) -> None:
        """Forget the gradients collected so far."""
        self.optimizer.zero_grad()
        self.broken.clear()

    def step(self, lr_scale: float) -> float:
        """Clip, step, clear; returns the gradient norm before clipping. Raises NotFinite instead of stepping."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._max_grad_norm))
        if self.broken or not math.isfinite(norm):
            reason = self.broken[0] if self.broken else f"the norm of the gradient is {norm}"
            self.discard()
            raise NotFinite(reason)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * lr_scale
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        return norm
