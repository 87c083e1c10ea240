"""Named, counter-based random streams: every draw is a function of (seed, name, counters) and of nothing else.

All draws happen on the CPU, one image at a time, so that groups, noises and levels do not depend on the micro-batch,
the number of processes, the device or the precision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def stream(seed: int, *name: str | int) -> torch.Generator:
    """A generator for one named place, such as `stream(0, "tau", iteration, step)`."""
    key = "/".join(str(part) for part in (seed, *name)).encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def noise(seed: int, name: str, counters: Sequence[int], image_ids: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal float32 (N, *shape): row i depends on image_ids[i], so images with one id share their noise."""
    drawn = {i: torch.randn(*shape, generator=stream(seed, name, *counters, i)) for i in dict.fromkeys(image_ids)}
    return torch.stack([drawn[i] for i in image_ids])


def uniform(seed: int, name: str, counters: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Uniform float64 numbers in [0, 1), shape (N,), one for each id; equal ids share their number."""
    drawn = {
        i: torch.rand((), generator=stream(seed, name, *counters, i), dtype=torch.float64) for i in dict.fromkeys(ids)
    }
    return torch.stack([drawn[i] for i in ids])
