"""One trained role: its parameters, its AdamW, and how often it has stepped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tdmr1_core.errors import Tdmr1Error


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
    ) -> None:
        self.name = name
        self.parameters = parameters
        self.learning_rate = learning_rate
        self.updates = 0
        self._max_grad_norm = max_grad_norm
        self.optimizer = torch.optim.AdamW(
            list(parameters.values()), lr=learning_rate, betas=betas, eps=epsilon, weight_decay=weight_decay
        )

    def collect(self, loss: Tensor) -> None:
        """Add a loss's gradient to what is collected; all of it, or none where memory runs out meanwhile."""
        weights = list(self.parameters.values())
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    def step(self, lr_scale: float) -> float:
        """Clip, step, clear; returns the gradient norm before clipping. Raises Tdmr1Error if it is not finite."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._max_grad_norm))
        if not norm < float("inf"):
            self.optimizer.zero_grad()
            raise Tdmr1Error(
                f"the gradient of the {self.name} is not finite after {self.updates} updates",
                f"lower {self.name}.learning_rate; the last checkpoint is untouched",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * lr_scale
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        return norm
