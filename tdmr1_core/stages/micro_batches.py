"""Splits the images of an iteration into micro-batches, halved when the device runs out of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tdmr1_core import heartbeat
from tdmr1_core.errors import Tdmr1Error, warn

Size = int | Literal["auto"] | None


@dataclass
class MicroBatches:
    """Processes images in micro-batches of `requested` images. None and "auto": all images in one micro-batch.

    When the device runs out of memory, the size is halved for the rest of the run, unless None was requested.
    `current` is the size once it differs from the requested one. The size changes the result only by rounding. Without
    `halves` the size stays, because the other processes of a run wait for the rest of a pass.
    """

    requested: Size
    current: int | None = None
    halves: bool = True

    @property
    def size(self) -> int | None:
        """The current number of images in a micro-batch; None for all."""
        return self.current or (self.requested if isinstance(self.requested, int) else None)

    def each(self, images: int, action: Callable[[Tensor], None], multiple: int = 1) -> None:
        """Call `action` with the row numbers 0 to images - 1, in order, one micro-batch (B,) at a time.

        A micro-batch is a multiple of `multiple` rows unless it is smaller than `multiple` or the last one. An action
        that runs out of memory is repeated with fewer rows, so it must have no effect in that case. Raises Tdmr1Error
        if one image does not fit.
        """
        first = 0
        while first < images:
            size = min(self.size or images, images)
            size -= size % multiple if size > multiple else 0
            rows = torch.arange(first, min(first + size, images))
            heartbeat.step()
            if not self._fits(action, rows):
                continue
            first += len(rows)

    def _fits(self, action: Callable[[Tensor], None], rows: Tensor) -> bool:
        """Run the action. Returns False, with the size halved, if the device ran out of memory."""
        try:
            action(rows)
            return True
        except torch.OutOfMemoryError as error:
            if not self.halves and len(rows) > 1:
                error.add_note(f"set batch.micro_batch to {len(rows) // 2} or less: memory.shard cannot reduce it")
            if self.requested is None or not self.halves:
                raise
            if len(rows) == 1:
                raise Tdmr1Error(
                    "the device is out of memory with a micro-batch of 1 image",
                    "set memory.gradient_checkpointing to true, or reduce model.height and model.width",
                    code="out-of-memory",
                    values={"micro_batch": 1},
                ) from error
        # Outside the except clause, where the exception would keep the tensors that did not fit alive.
        self.current = len(rows) // 2
        warn(
            f"the device ran out of memory with a micro-batch of {len(rows)} images; continuing with {self.current}",
            code="micro-batch-halved",
            size=len(rows),
            next_size=self.current,
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False
