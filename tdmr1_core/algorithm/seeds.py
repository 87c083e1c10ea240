"""Named, counter-based random streams: every draw depends only on (seed, name, counters).

Draws are made on the CPU, one image at a time. They do not depend on the micro-batch, the number of processes, the
device or the precision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def stream(seed: int, *name: str | int) -> torch.Generator:
    """The generator of one named stream, such as `stream(0, "tau", iteration, step)`."""
    key = "/".join(str(part) for part in (seed, *name)).encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    # Shifted to 63 bits, so that the seed is a non-negative int64.
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def noise(seed: int, name: str, counters: Sequence[int], image_ids: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 (N, *shape). Row i depends on image_ids[i]; equal ids get equal noise."""
    drawn = {
        i: torch.randn(*shape, generator=stream(seed, name, *counters, i), dtype=torch.float32)
        for i in dict.fromkeys(image_ids)
    }
    return torch.stack([drawn[i] for i in image_ids])


def uniform(seed: int, name: str, counters: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Uniform random numbers in [0, 1), float64 (N,), one per id. Equal ids get equal numbers."""
    drawn = {
        i: torch.rand((), generator=stream(seed, name, *counters, i), dtype=torch.float64) for i in dict.fromkeys(ids)
    }
    return torch.stack([drawn[i] for i in ids])
