"""The pictures of a store: one PNG file for each, named by the hash of its pixels."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.hashing import image_hash

if TYPE_CHECKING:
    from PIL.Image import Image

HASH = re.compile(r"[0-9a-f]{64}")


class ImageFolder:
    """Pictures as `<hash>.png` in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, images: Iterable[Any]) -> list[str]:
        """Write those that are not there yet, and return the hash of each. Raises Tdmr1Error for what is no picture.

        A file appears whole or not at all, and is on disk before its hash is returned.
        """
        hashes = []
        for image in images:
            picture = read_image(image) if isinstance(image, str | os.PathLike) else image
            hashes.append(image_hash(picture))
            target = self._path(hashes[-1])
            if not target.exists():
                self._write(picture, target)
        _flush(self._folder)
        return hashes

    def find(self, name: str) -> Path | None:
        """The file of a hash; None for one that isn't there, and for anything that is no hash."""
        if not HASH.fullmatch(name):
            return None
        path = self._path(name)
        inside = path.resolve().parent == self._folder.resolve()
        return path if inside and path.is_file() else None

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.png"

    def _write(self, image: Any, target: Path) -> None:
        from PIL import Image

        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        handle, building = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                picture.convert("RGB").save(file, format="PNG", compress_level=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(building, target)
        except BaseException:
            Path(building).unlink(missing_ok=True)
            raise


def read_image(path: str | os.PathLike[str]) -> Image:
    """A picture file as RGB, turned the way its camera was held. Raises Tdmr1Error if it is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise Tdmr1Error(f"{path} can't be read as a picture", "give PNG, JPEG or WebP files") from error


def _flush(folder: Path) -> None:
    """Make new names in a folder last; where folders can't be opened (Windows) the system does it by itself."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
