"""The versions that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("tdmr1", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def versions() -> dict[str, str]:
    """Package versions by name, `absent` for what is not installed, and Python's own."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
