"""How many images are worked on at once: as many as are asked for, or as many as fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tdmr1_core.errors import Tdmr1Error, warn

Size = int | Literal["auto"] | None


class MicroBatches:
    """Goes through images in micro-batches of `size`: all at once for None and, if memory allows it, for `auto`.

    But for None the size is halved when the device runs out of memory, and stays so; what is computed doesn't change.
    """

    def __init__(self, size: Size) -> None:
        self._halves = size is not None
        self.size = size if isinstance(size, int) else None

    def each(self, images: int, action: Callable[[Tensor], None], multiple: int = 1) -> None:
        """Call `action` with row numbers 0 to images - 1 in order, in multiples of `multiple` where that many fit.

        An action that runs out of memory is called again with fewer rows, so it must leave nothing half done. Raises
        Tdmr1Error if not even one image fits.
        """
        first = 0
        while first < images:
            size = min(self.size or images, images)
            size -= size % multiple if size > multiple else 0
            rows = torch.arange(first, min(first + size, images))
            if not self._fits(action, rows):
                continue
            first += len(rows)

    def _fits(self, action: Callable[[Tensor], None], rows: Tensor) -> bool:
        """Whether there was memory enough; else the size is halved."""
        try:
            action(rows)
            return True
        except torch.OutOfMemoryError as error:
            if not self._halves:
                raise
            if len(rows) == 1:
                raise Tdmr1Error(
                    "the device is out of memory with a single image at a time",
                    "switch on memory.gradient_checkpointing, or take smaller pictures",
                ) from error
        # Outside of the except clause: there the error would still hold on to the tensors that did not fit.
        self.size = len(rows) // 2
        warn(f"the device ran out of memory with {len(rows)} images at once, and goes on with {self.size}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False
