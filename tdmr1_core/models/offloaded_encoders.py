"""Text encoders that are on the device only while they encode, and that are released when they are not needed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from tdmr1_core.models.backbone import Backbone
from tdmr1_core.models.quantization import is_quantized


@dataclass(eq=False)
class OffloadedEncoders:
    """The text encoders that the `backbones` share. They are on the CPU, or on the device instead of the denoisers.

    `load` reads the encoders again after their release: networks on the CPU by the name of their part of the pipeline.
    Without it they cannot be released. They are released once at most, so that prompts that are not known ahead do not
    read them from disk again and again.
    """

    backbones: Sequence[Backbone]
    load: Callable[[], Mapping[str, nn.Module]] | None = None
    _is_released: bool = field(default=False, init=False)
    _is_reloaded: bool = field(default=False, init=False)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Within the context the text encoders are on the device and the denoisers on the CPU; afterwards the reverse.

        Quantized denoisers are not moved: they are small, and their layers are not designed to be moved. Raises
        Tdmr1Error if released encoders cannot be loaded again.
        """
        if self._is_released:
            self._reload()
        base = self.backbones[0]
        movable = [each.network for each in self.backbones if not is_quantized(each.network)]
        try:
            _move(movable, "cpu")
            _move(base.text_encoders(), base.device)
            yield
        finally:
            _move(base.text_encoders(), "cpu")  # none, if they were released meanwhile
            _move(movable, base.device)

    def release(self) -> None:
        """Free the memory of the encoders, on the device and on the host."""
        if self.load is None or self._is_reloaded:
            return
        self._is_released = True
        for name in self._names():
            self._set(name, None)
        gc.collect()

    def _names(self) -> list[str]:
        """The parts of the pipeline that are text encoders."""
        encoders = self.backbones[0].text_encoders()
        parts = vars(self.backbones[0].pipeline)  # type: ignore[attr-defined]
        return [name for name, part in parts.items() if any(part is encoder for encoder in encoders)]

    def _set(self, name: str, encoder: nn.Module | None) -> None:
        for backbone in self.backbones:
            setattr(backbone.pipeline, name, encoder)  # type: ignore[attr-defined]

    def _reload(self) -> None:
        assert self.load is not None
        for name, encoder in self.load().items():
            self._set(name, encoder)
        self._is_released, self._is_reloaded = False, True


def _move(networks: Sequence[nn.Module], where: torch.device | str) -> None:
    for network in networks:
        network.to(where)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
