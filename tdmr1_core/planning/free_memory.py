"""The free memory of GPUs: of the device of a run, or of the cards of this machine without importing torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

QUERY = ("nvidia-smi", "--query-gpu=memory.free,name", "--format=csv,noheader,nounits")
MIB = 2.0**20
SECONDS = 10
"""How long the tool may take."""


def device_name(device: torch.device) -> str | None:
    """The name of a CUDA device; None for any other device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def free_memory(device: torch.device) -> float | None:
    """Free bytes of a CUDA device; None for any other device."""
    import torch

    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


@dataclass(frozen=True)
class FoundCard:
    """A card of this machine."""

    free: float
    """Free bytes."""
    name: str
    """As the driver writes it."""


def found_card(processes: int = 1) -> FoundCard | None:
    """The fullest card that a run of so many processes uses here; None if `nvidia-smi` finds too few."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = [] if visible is None else [f"--id={visible}"]
    try:
        done = subprocess.run([*QUERY, *named], capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    rows = [line.partition(",") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    cards = [FoundCard(float(free) * MIB, name.strip()) for free, _, name in rows if free.strip().isdecimal()]
    return min(cards[:processes], key=lambda card: card.free) if len(cards) >= processes else None
