"""The free memory of GPUs: of the device of a run, or of a card of this machine without importing torch."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

QUERY = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
MIB = 2.0**20
SECONDS = 10
"""How long the tool may take."""


def free_memory(device: torch.device) -> float | None:
    """Free bytes of a CUDA device; None for any other device."""
    import torch

    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def found_card(processes: int = 1) -> float | None:
    """Free bytes of the fullest card that a run of so many processes uses here; None if `nvidia-smi` finds too few."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = [] if visible is None else [f"--id={visible}"]
    try:
        done = subprocess.run([*QUERY, *named], capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = [float(line) for line in done.stdout.split() if line.isdecimal()] if done.returncode == 0 else []
    return min(numbers[:processes]) * MIB if len(numbers) >= processes else None
