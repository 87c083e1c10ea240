"""The image files of a store: one PNG file per image, named by the hash of its pixels."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tdmr1_rewards.calling.image_files import read_image
from tdmr1_rewards.feedback.hashing import image_hash

HASH = re.compile(r"[0-9a-f]{64}")


class ImageFolder:
    """Images stored as `<hash>.png` in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._resolved = folder.resolve()

    def add(self, images: Iterable[Any]) -> list[str]:
        """Store images and return their hashes. An image is a PIL image, a uint8 array (H, W, 3) or a file's path.

        New files are written atomically, and are durable when the hashes are returned. Raises Tdmr1Error for anything
        that is not an image.
        """
        hashes = []
        for image in images:
            loaded = read_image(image) if isinstance(image, str | os.PathLike) else image
            hashes.append(image_hash(loaded))
            target = self._path(hashes[-1])
            if not target.exists():
                self._write(loaded, target)
        _flush(self._folder)
        return hashes

    def find(self, name: str) -> Path | None:
        """The file of the image with this hash; None if there is none, or if `name` is not a hash."""
        if not HASH.fullmatch(name):
            return None
        path = self._path(name)
        inside = path.resolve().parent == self._resolved
        return path if inside and path.is_file() else None

    def names(self) -> set[str]:
        """The hashes of all images."""
        return {file.removesuffix(".png") for file in os.listdir(self._folder)}

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.png"

    def _write(self, image: Any, target: Path) -> None:
        from PIL import Image

        loaded = image if isinstance(image, Image.Image) else Image.fromarray(image)
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                loaded.convert("RGB").save(file, format="PNG", compress_level=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _flush(folder: Path) -> None:
    """Make new file names durable. On Windows folders cannot be opened, and this does nothing."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
