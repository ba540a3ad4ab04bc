"""Confidence intervals of means and shares."""

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from alignrun.errors import InputError

RESAMPLES = 5000
"""Bootstrap draws behind an interval."""
BATCH_VALUES = 2_000_000
"""How many resampled clusters are held at a time."""


def mean_interval(values: Sequence[float], confidence: float, seed: int = 0) -> tuple[float, float]:
    """A bias-corrected and accelerated bootstrap interval of the mean (Efron, JASA 1987); values are resampled whole.

    With one value or with equal ones there is nothing to resample, and the interval is the mean itself.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 2 or np.ptp(data) == 0:
        return float(data.mean()), float(data.mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (data,),
            np.mean,
            confidence_level=confidence,
            n_resamples=RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def _ratio(sums: NDArray[np.float64], counts: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = sums.sum(axis) / counts.sum(axis)
    return ratio


def clustered_mean_interval(
    values: ArrayLike, clusters: Sequence[Hashable] | NDArray[np.int64], confidence: float, seed: int = 0
) -> tuple[float, float]:
    """A bootstrap interval of the mean over all values, Σ_g sum_g / Σ_g n_g, that draws whole clusters g.

    Values of one cluster (pairs of one prompt) resemble each other, and drawing them one by one would make the
    interval too narrow, by a factor of about √(1 + (n_g − 1)·correlation). The ratio of sums weights values equally,
    not clusters, and so has the plain mean as its estimate. Bias-corrected and accelerated (Efron, JASA 1987), as in
    `mean_interval`, which this is if every cluster holds one value: a ratio is biased and a share near 0 or 1 is
    skewed, and the percentile method corrects neither. Simulated with shares of 0.8 to 0.95, intervals of 95% contain
    the truth in 92 to 94% of cases with 60 clusters and in 90 to 92% with 20; percentiles in 90 to 93% and 84 to 91%.

    With one cluster, or with equal means in all, there is nothing to resample, and the interval is the mean itself:
    that is no certainty. Shapes: values [N], clusters [N]. Raises InputError on unequal lengths or without values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) != len(clusters) or not len(data):
        raise InputError(f"interval: values and clusters must be of one length, not {data.shape} and {len(clusters)}")
    places: dict[Hashable, int] = {}
    index = [places.setdefault(cluster, len(places)) for cluster in clusters]
    sums, counts = np.bincount(index, weights=data), np.bincount(index).astype(np.float64)
    if np.ptp(sums / counts) < 1e-12:
        return float(data.mean()), float(data.mean())
    interval = stats.bootstrap(
        (sums, counts),
        _ratio,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_VALUES // len(sums)),
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def wilson_interval(share: float, count: int, confidence: float) -> tuple[float, float]:
    """The score interval of a share of `count` independent trials (Wilson, JASA 1927); never empty at 0 or 1.

    A share of soft labels varies less than one of ones and zeros, so that for those it is wider than needed.
    """
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * float(np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)))
    return max(0.0, centre - half), min(1.0, centre + half)
