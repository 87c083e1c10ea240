"""The gains of several training seeds, each of the same prompts and noises before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tdmr1_core.runs.looking.intervals import CONFIDENCE, Gain


@dataclass(frozen=True)
class AcrossSeeds:
    """Gains of `n` training seeds: mean, minimum, maximum, and the 95 % t-interval of the mean (NaN for one seed)."""

    mean: float
    minimum: float
    maximum: float
    low: float
    high: float
    n: int


def across_seeds(gains: Sequence[Gain]) -> AcrossSeeds:
    """Summarize the gains of independent training seeds. The t-interval assumes that they are normally distributed."""
    if not gains:
        raise ValueError("there are no gains")
    values = np.array([gain.gain for gain in gains])
    mean, n = float(values.mean()), len(values)
    half = np.nan
    if n > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return AcrossSeeds(mean, float(values.min()), float(values.max()), mean - half, mean + half, n)
