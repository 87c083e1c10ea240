"""The packages and the hardware that results depend on."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("tdmr1", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def versions() -> dict[str, str]:
    """The version of Python and of each package by name; `absent` for a package that is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def hardware(device: str) -> str:
    """The GPUs or the CPU of a run with this setting `model.device`, such as "2 x NVIDIA H200" or "AMD EPYC, 2 cores".

    A run has one GPU for each of its processes.
    """
    import torch

    if device != "cpu" and torch.cuda.is_available():
        count = int(os.environ.get("WORLD_SIZE", "1"))
        return f"{count} x {torch.cuda.get_device_name()}"
    return f"{_cpu_name()}, {os.cpu_count()} cores"


def _cpu_name() -> str:
    """The name of the CPU, or its architecture if the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
