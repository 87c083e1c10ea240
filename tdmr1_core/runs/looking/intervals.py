"""Differences between two evaluations with 95 % intervals: of the same images, or only of their means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tdmr1_core.runs.evaluation.evaluate import Measure

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


def unpaired_gain(before: Measure, after: Measure) -> Gain:
    """The difference of two means of independent images, with Welch's t-interval; n is the smaller number of images.

    The interval is NaN if a standard error is unknown.
    """
    from scipy.special import stdtrit

    gain = after.mean - before.mean
    parts = [(before.stderr**2, before.n - 1), (after.stderr**2, after.n - 1)]
    variance = sum(part for part, _ in parts)
    uncertainty = sum(part**2 / freedom for part, freedom in parts if freedom > 0)
    half = 0.0 if variance == 0 else np.nan
    if uncertainty > 0:  # Welch-Satterthwaite: the degrees of freedom are variance^2 / uncertainty
        half = float(stdtrit(variance**2 / uncertainty, (1 + CONFIDENCE) / 2) * np.sqrt(variance))
    return Gain(before.mean, after.mean, gain, gain - half, gain + half, min(before.n, after.n))


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
