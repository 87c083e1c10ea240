"""Encodes prompts, with a cache in memory and on disk, and encodes the prompts of the next iterations ahead."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tdmr1_core import heartbeat
from tdmr1_core.durable_files import write_durable
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.backbone import Backbone
from tdmr1_core.models.memory import encoder_identity
from tdmr1_core.models.offloaded_encoders import OffloadedEncoders
from tdmr1_core.records import Conditioning

DIGEST = "sha256"
"""The metadata key of the digest in a cache file."""


@dataclass(eq=False)
class PromptEncoder:
    """Encodes each text separately, so that the result does not depend on the other texts of a batch.

    The most recently used texts are kept in host memory, up to `budget` bytes. With a `cache` folder, encoded texts are
    also stored there. The name of a file is a hash of the text, of the tokenizers and text encoders, of the package
    versions, and of `make`, which describes how the encoders are used.

    With `encoders`, the text encoders are on the device only while they encode. With `upcoming` too, which returns the
    texts that will be needed, in this order, the encoders then also encode as many of these as the budget holds. If it
    holds all of them, the encoders are released. `identity` is the `encoder_identity`, if it cannot be read any more.
    """

    backbone: Backbone
    _: KW_ONLY
    make: str
    cache: Path | None
    budget: float
    encoders: OffloadedEncoders | None = None
    identity: Sequence[str] | None = None
    upcoming: Callable[[], Iterable[str]] | None = None
    _kept: dict[str, Conditioning] = field(default_factory=dict, init=False)
    _kept_bytes: int = field(default=0, init=False)
    _can_guide: bool = field(default=False, init=False)
    """Whether the empty prompt is encoded. Guidance needs it while the text encoders are not on the device."""

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """The conditioning on the device, one row per text.

        Raises Tdmr1Error if the cache cannot be written, or if released encoders cannot be loaded again.
        """
        found = {text: self._find(text) for text in dict.fromkeys(texts)}
        known = {text: each for text, each in found.items() if each is not None}
        missing = [text for text in found if text not in known]
        if self.encoders is None:
            self._encode_missing(missing, known)
        elif missing or not self._can_guide:
            with self.encoders.on_device():
                _ = self.backbone.unconditional
                self._can_guide = True
                self._encode_missing(missing, known)
                if self.upcoming is not None and self._encode_ahead(known, self.upcoming()):
                    self.encoders.release()
        return Conditioning.cat([known[text] for text in texts]).to(self.backbone.device)

    def _encode_missing(self, missing: Iterable[str], known: dict[str, Conditioning]) -> None:
        """Encode the missing texts, and add them to the known ones."""
        for text in missing:
            known[text] = self._encode(text)
            self._keep(text, known[text])

    def _encode_ahead(self, known: Mapping[str, Conditioning], upcoming: Iterable[str]) -> bool:
        """Keep the upcoming texts that the budget holds beside the known ones. Whether it holds all."""
        total, seen = sum(map(size_of, known.values())), set(known)
        for text in upcoming:
            if text in seen:
                continue
            if total >= self.budget:
                return False
            found = self._find(text)
            if found is None:
                found = self._encode(text)
            seen.add(text)
            total += size_of(found)
            if total > self.budget:
                return False
            self._keep(text, found)
        return total <= self.budget

    @cached_property
    def _identity(self) -> str:
        return "\n".join([self.make, *(self.identity or encoder_identity(self.backbone))])

    def _find(self, text: str) -> Conditioning | None:
        """The encoded text from memory, where it becomes the most recently used one, or from the cache folder."""
        kept = self._kept.pop(text, None)
        if kept is not None:
            self._kept[text] = kept  # moved to the end: most recently used
            return kept
        found = None if self.cache is None else _read(self._path(text))
        if found is not None:
            self._keep(text, found)
        return found

    def _keep(self, text: str, conditioning: Conditioning) -> None:
        """Keep an encoded text in memory, instead of the least recently used ones if there is no room for all."""
        size = size_of(conditioning)
        if text in self._kept or size > self.budget:
            return
        while self._kept_bytes + size > self.budget:
            self._kept_bytes -= size_of(self._kept.pop(next(iter(self._kept))))
        self._kept[text] = conditioning
        self._kept_bytes += size

    def _encode(self, text: str) -> Conditioning:
        """Encode a text, and store it in the cache folder. The result is on the CPU."""
        heartbeat.step()
        encoded = self.backbone.encode([text]).to(torch.device("cpu"))
        if self.cache is None:
            return encoded
        path = self._path(text)
        building = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durable(building, _pack(encoded, path.stem))
            building.replace(path)
        except (OSError, SafetensorError) as error:
            raise Tdmr1Error(
                f"the prompt cache {self.cache} cannot be written: {error}",
                "set memory.prompt_cache to a writable folder",
                code="not-writable",
                values={"path": str(self.cache)},
            ) from error
        return encoded

    def _path(self, text: str) -> Path:
        assert self.cache is not None
        digest = hashlib.sha256(f"{self._identity}\n{text}".encode()).hexdigest()
        return self.cache / digest[:2] / f"{digest}.safetensors"


def size_of(conditioning: Conditioning) -> int:
    """The bytes of the tensors of a conditioning."""
    return sum(value.nbytes for value in vars(conditioning).values() if isinstance(value, Tensor))


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
