"""Draws the prompts of an iteration by the running estimates of their reward spreads (`batch.prompts: teaching`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.algorithm.teaching import draw_prompts, effective_number, prompt_probabilities, update_estimate
from tdmr1_core.records import Groups, Prompt


@dataclass(eq=False)
class TeachingPrompts:
    """The training prompts, and an estimate of the reward spread of each text.

    All processes observe the spreads of all groups, so they draw the same prompts. The spreads of an iteration count
    from its end on: `completed` is the number of completed iterations. Until then a checkpoint does not contain them,
    as it does not contain the updates.
    """

    prompts: Sequence[Prompt]
    floor: float
    _numbers: dict[str, int] = field(init=False)
    """The number of each text. Prompts with the same text share an estimate."""
    _estimates: list[float] = field(init=False)
    """The estimate of each text; NaN before its first group."""
    _new: tuple[int, list[tuple[int, float]]] | None = field(default=None, init=False)
    """The number of iterations completed before the last observations, and these: number of the text and spread."""

    def __post_init__(self) -> None:
        self._numbers = {text: i for i, text in enumerate(dict.fromkeys(prompt.text for prompt in self.prompts))}
        self._estimates = [math.nan] * len(self._numbers)

    def next_groups(self, iteration: int, completed: int, groups: int, group_size: int, seed: int) -> Groups:
        """The groups of an iteration, counted from 0. If it is later than the next one, they may still change."""
        chosen = draw_prompts(self._probabilities(completed), groups, seeds.stream(seed, "teaching", iteration))
        return Groups(iteration, tuple(self.prompts[index] for index in chosen), group_size)

    def numbers(self, groups: Groups) -> list[int | None]:
        """The number of the text of each group; None for a text that is not a training prompt."""
        return [self._numbers.get(prompt.text) for prompt in groups.prompts]

    def observe(self, numbers: Sequence[int | None], spreads: Tensor, completed: int) -> dict[str, float]:
        """Note the spreads (groups,) of the iteration after `completed` ones, NaN where they are unknown.

        Returns metrics of the probabilities with which the prompts of this iteration were drawn.
        """
        probabilities = self._probabilities(completed)
        pairs = zip(numbers, spreads.tolist(), strict=True)
        self._new = (completed, [(i, value) for i, value in pairs if i is not None and math.isfinite(value)])
        tried = sum(not math.isnan(value) for value in self._estimates)
        return {
            "teaching/effective_prompts": effective_number(probabilities),
            "teaching/tried": tried / len(self._estimates),
        }

    def state(self, completed: int) -> dict[str, float]:
        """The estimates, as JSON data: those of texts that had a group."""
        self._settle(completed)
        return {str(i): value for i, value in enumerate(self._estimates) if not math.isnan(value)}

    def restore(self, state: Mapping[str, float]) -> None:
        """Restore the estimates of a checkpoint. Those of prompts that do not exist are skipped."""
        self._new = None
        self._estimates = [float(state.get(str(i), math.nan)) for i in range(len(self._estimates))]

    def _probabilities(self, completed: int) -> Tensor:
        """The probability of each prompt (N,)."""
        self._settle(completed)
        each = [self._estimates[self._numbers[prompt.text]] for prompt in self.prompts]
        return prompt_probabilities(torch.tensor(each, dtype=torch.float64), self.floor)

    def _settle(self, completed: int) -> None:
        """Add the last observations to the estimates, if their iteration is complete."""
        if self._new is not None and self._new[0] < completed:
            for number, spread in self._new[1]:
                self._estimates[number] = update_estimate(self._estimates[number], spread)
            self._new = None
