"""Environments of this interpreter without packages, or with a few that are linked from this environment."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path


def bare_environment(folder: Path, *paths: Path) -> Path:
    """The interpreter of a new environment without packages, except those in the folders `paths`."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in paths))
    return folder / "bin" / "python"


def image_environment(folder: Path) -> Path:
    """The interpreter of a new environment with only numpy and Pillow: no pluggy, pydantic or torch."""
    borrowed, site = folder / "borrowed", Path(sysconfig.get_path("purelib"))
    borrowed.mkdir()
    for name in ("numpy", "numpy.libs", "PIL", "pillow.libs"):
        if (site / name).exists():
            (borrowed / name).symlink_to(site / name)
    return bare_environment(folder / "environment", borrowed)
