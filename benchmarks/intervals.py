"""Confidence intervals for paired evaluations: the same prompts and noises before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 4000


@dataclass(frozen=True)
class Gain:
    """Means before and after, their difference with a 95 % interval (in the unit of the metric), and n pairs."""

    before: float
    after: float
    gain: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class AcrossSeeds:
    """Gains of `n` training seeds: mean, minimum, maximum, and the 95 % t-interval of the mean (NaN for one seed)."""

    mean: float
    minimum: float
    maximum: float
    low: float
    high: float
    n: int


def paired_gain(before: np.ndarray, after: np.ndarray, clusters: np.ndarray | None = None, seed: int = 0) -> Gain:
    """The mean gain of pairs (N,) with a percentile bootstrap interval.

    `clusters` (N,) are the prompts. Each resample draws clusters with replacement, and then within each drawn cluster
    as many pairs as it has, with replacement. Without clusters, it draws pairs. Pairs with a NaN are omitted. Raises
    ValueError if the lengths differ or no pair remains.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    labels = np.arange(len(before)) if clusters is None else np.asarray(clusters)
    if not before.shape == after.shape == labels.shape or before.ndim != 1:
        raise ValueError(f"expected arrays of the same length, got {before.shape}, {after.shape} and {labels.shape}")
    known = ~np.isnan(before) & ~np.isnan(after)
    if not known.any():
        raise ValueError("no pair has two values")
    before, after = before[known], after[known]
    means = _resampled_means(after - before, labels[known], np.random.default_rng(seed))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    gain = float(np.mean(after - before))
    return Gain(float(before.mean()), float(after.mean()), gain, float(low), float(high), len(before))


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


def _resampled_means(differences: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means (RESAMPLES,) of two-stage resamples: clusters, then pairs within them."""
    _, cluster, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    ordered = differences[np.argsort(cluster, kind="stable")]
    starts = np.cumsum(sizes) - sizes
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(len(sizes), size=len(sizes))
        lengths = np.repeat(sizes[drawn], sizes[drawn])
        chosen = np.repeat(starts[drawn], sizes[drawn]) + rng.integers(lengths)
        means[i] = ordered[chosen].mean()
    return means
