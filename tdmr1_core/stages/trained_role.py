"""One trained role: its parameters, its optimizer and its number of updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tdmr1_core.records import Groups


class NotFinite(Exception):
    """A loss or gradient norm is NaN or infinite. No parameter was changed, and the gradient is cleared."""


@dataclass(eq=False)
class TrainedRole:
    """Accumulates the gradient of a role over micro-batches, clips its norm and takes AdamW steps."""

    name: str
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    _: KW_ONLY
    learning_rate: float
    max_grad_norm: float
    backward_pass: Callable[[], AbstractContextManager[None]] = nullcontext
    """A context for each backward pass (`Roles.backward_pass`)."""
    updates: int = field(default=0, init=False)
    not_finite: list[str] = field(default_factory=list, init=False)
    """The losses since the last step that were not finite, as sentences."""

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of a loss. If the device runs out of memory, nothing is added."""
        weights = list(self.parameters.values())
        with self.backward_pass():
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    def record_loss(self, loss: Tensor, groups: Groups, rows: Tensor) -> float:
        """Return the loss of the micro-batch `rows` (B,) as a float. Record it if it is NaN or infinite."""
        value = loss.item()
        if not math.isfinite(value):
            first, last = groups.image_ids[int(rows[0])], groups.image_ids[int(rows[-1])]
            self.not_finite.append(f"the loss is {value} for images {first} to {last} of the batch")
        return value

    def discard(self) -> None:
        """Discard the accumulated gradient."""
        self.optimizer.zero_grad()
        self.not_finite.clear()

    def step(self, lr_scale: float) -> float:
        """Take one clipped optimizer step and clear the gradient. Returns the gradient norm before clipping.

        The learning rate is multiplied by `lr_scale`. Raises NotFinite, without a step, if a recorded loss or the norm
        is not finite.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm))
        if self.not_finite or not math.isfinite(norm):
            reason = self.not_finite[0] if self.not_finite else f"the norm of the gradient is {norm}"
            self.discard()
            raise NotFinite(reason)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * lr_scale
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        return norm
