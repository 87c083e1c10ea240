"""The log of a run's time, memory and machine: resources.jsonl. It affects nothing, and a run folder may lack it.

One line for each iteration: its `step`, the time at its end (Unix seconds), the largest memory of this process so far
and, on a GPU, of the GPU (GB). The first line of each session also describes the machine.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tdmr1_core.durable_files import translate_write_errors
from tdmr1_core.runs.jsonl import Row, as_lines, number, read_lines, step_of

RESOURCES = "resources.jsonl"
GB = 1e9


@dataclass(frozen=True)
class Usage:
    """The state after iteration `step`: Unix time, memory in GB by place, and the machine where a session begins."""

    step: int
    time: float
    memory: dict[str, float] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)


class ResourceLog:
    """Appends to the log of a run folder. A crash may lose its last line."""

    def __init__(self, folder: Path, device: torch.device, processes: int) -> None:
        self._path = folder / RESOURCES
        self._device = device
        self._machine: dict[str, str] | None = machine(device, processes)

    def write(self, step: int) -> None:
        """Write the line of iteration `step`; 0 is the start of a run."""
        row: Row = {"step": step, "time": round(time.time(), 3), "memory": memory(self._device)}
        if self._machine is not None:
            row["machine"], self._machine = self._machine, None
        with translate_write_errors(self._path), self._path.open("ab") as file:
            file.write(as_lines([row]))


def read_resources(folder: Path) -> list[Usage]:
    """The lines of the log in their order: those of a repeated iteration come again. Empty without a log."""
    return read_lines(folder / RESOURCES, _usage)


def _usage(row: Row) -> Usage:
    """Convert a line. Raises one of `durable_files.MALFORMED`."""
    used = {str(place): number(value) for place, value in row["memory"].items()}
    described = {str(name): str(value) for name, value in row.get("machine", {}).items()}
    return Usage(step_of(row), number(row["time"]), used, described)


def memory(device: torch.device) -> dict[str, float]:
    """The largest memory so far in GB: of this process, and of its tensors on the GPU if it has one."""
    found = {}
    peak = _peak_of_process()
    if peak is not None:
        found["process"] = round(peak / GB, 4)
    if device.type == "cuda":
        found["GPU"] = round(torch.cuda.max_memory_allocated(device) / GB, 4)
    return found


def _peak_of_process() -> float | None:
    """The largest resident memory of this process in bytes; None where the system does not report it."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine(device: torch.device, processes: int) -> dict[str, str]:
    """The machine of this session as texts: its device, CPU cores, memory, system and number of processes."""
    found: dict[str, Any] = {"device": _device_name(device), "processes": processes}
    found["CPU cores"] = os.cpu_count() or "unknown"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GB:.0f} GB"
    found["system"] = f"{platform.system()} {platform.machine()}"
    return {name: str(value) for name, value in found.items()}


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type.upper()
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} ({properties.total_memory / GB:.0f} GB)"
