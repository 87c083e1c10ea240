"""Encodes prompts, with a cache in memory or on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tdmr1_core.durable_files import write_durable
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.backbone import Backbone
from tdmr1_core.models.memory import encoder_identity, encoders_on_device
from tdmr1_core.records import Conditioning

DIGEST = "sha256"
"""The metadata key of the digest in a cache file."""
KEPT = 1024
"""The number of encoded texts kept in memory: 1.7 GB for SD3.5-medium in bf16, with 205 tokens each."""


@dataclass(eq=False)
class PromptEncoder:
    """Encodes each text separately, so that the result does not depend on the other texts of a batch.

    With a `cache` folder, encoded texts are stored there. The name of a file is a hash of the text, of the tokenizers
    and text encoders, of the package versions, and of `make`, which describes how the encoders are used. Without a
    folder, the `most` recently used texts are kept in memory, on the CPU.

    With `instead_of`, the text encoders are on the device only while they encode; these denoisers are on the CPU then.
    """

    backbone: Backbone
    _: KW_ONLY
    make: str
    cache: Path | None
    instead_of: Sequence[nn.Module] | None = None
    most: int = KEPT
    _kept: dict[str, Conditioning] = field(default_factory=dict, init=False)

    def encode_unconditional(self) -> None:
        """Encode the empty prompt now, because guidance needs it while the text encoders are not on the device."""
        with self._encoders():
            _ = self.backbone.unconditional

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """The conditioning on the device, one row per text. Raises Tdmr1Error if the cache cannot be written."""
        known = {text: self._find(text) for text in dict.fromkeys(texts)}
        missing = [text for text, found in known.items() if found is None]
        if missing:
            with self._encoders():
                for text in missing:
                    known[text] = self._keep(text, self.backbone.encode([text]))
        parts = [known[text] for text in texts]
        whole = Conditioning.cat([part for part in parts if part is not None])
        return whole.to(self.backbone.device)

    def _encoders(self) -> AbstractContextManager[None]:
        """A context in which the text encoders are on the device."""
        if self.instead_of is None:
            return nullcontext()
        return encoders_on_device(self.backbone, self.instead_of)

    @cached_property
    def _identity(self) -> str:
        return "\n".join([self.make, *encoder_identity(self.backbone)])

    def _find(self, text: str) -> Conditioning | None:
        if self.cache is None:
            return self._recall(text)
        return _read(self._path(text))

    def _recall(self, text: str) -> Conditioning | None:
        kept = self._kept.pop(text, None)
        if kept is not None:
            self._kept[text] = kept  # moved to the end: most recently used
        return kept

    def _keep(self, text: str, conditioning: Conditioning) -> Conditioning:
        kept = conditioning.to(torch.device("cpu"))
        if self.cache is None:
            self._kept[text] = kept
            if len(self._kept) > self.most:
                del self._kept[next(iter(self._kept))]
            return kept
        path = self._path(text)
        building = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durable(building, _pack(kept, path.stem))
            building.replace(path)
        except (OSError, SafetensorError) as error:
            raise Tdmr1Error(
                f"the prompt cache {self.cache} cannot be written: {error}",
                "set memory.prompt_cache to a writable folder",
                code="not-writable",
                values={"path": str(self.cache)},
            ) from error
        return kept

    def _path(self, text: str) -> Path:
        assert self.cache is not None
        digest = hashlib.sha256(f"{self._identity}\n{text}".encode()).hexdigest()
        return self.cache / digest[:2] / f"{digest}.safetensors"


def _pack(conditioning: Conditioning, key: str) -> bytes:
    """The bytes of the cache file with this key, including a digest of its content."""
    tensors = {name: value.contiguous() for name, value in vars(conditioning).items() if value is not None}
    return save(tensors, {DIGEST: _digest(tensors, key)})


def _read(path: Path) -> Conditioning | None:
    """Read an encoded text. None if the file is missing, damaged or of another key; it is then written again."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            digest = (file.metadata() or {}).get(DIGEST)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Conditioning(**tensors) if digest == _digest(tensors, path.stem) else None
    except (OSError, SafetensorError, ValueError, TypeError):
        return None


def _digest(tensors: dict[str, Tensor], key: str) -> str:
    """A hash of the key and of the names, shapes, dtypes and values of the tensors."""
    return hashlib.sha256(key.encode() + save(tensors)).hexdigest()
