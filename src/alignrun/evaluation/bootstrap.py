"""Bootstrap confidence intervals of statistics of means over prompts, resampling whole prompts.

Legend: X prompts; B draws of X prompts each.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from alignrun.errors import InputError
from alignrun.evaluation.intervals import (
    BATCH_VALUES,
    FEW,
    RESAMPLES,
    UNBOUNDED,
    Limits,
    mean_interval,
    unvaried,
    widened,
)
from alignrun.evaluation.results import Estimate

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Maps means over prompts, one set per draw, to the statistics: [B, …] -> [B, m]."""
Method = Literal["BCa", "percentile"]

ROUNDING = 1e-9
"""A statistic that varies by less over the draws is constant up to rounding."""


def the_means(means: Array) -> Array:
    """The identity statistic: the means themselves, flattened. [B, …] -> [B, m]."""
    return means.reshape(len(means), -1)


def _from_prompts(values: Array, statistic: Statistic) -> Callable[..., Array]:
    """The statistic of the drawn prompts in SciPy's calling convention: [X'] -> [m] and [B, X'] -> [m, B]."""
    prompts, table = len(values), values.reshape(len(values), -1)

    def of(drawn: NDArray[np.int64], axis: int = -1) -> Array:
        rows = np.atleast_2d(drawn)
        places = rows + prompts * np.arange(len(rows))[:, None]
        times_drawn = np.bincount(places.ravel(), minlength=len(rows) * prompts).reshape(len(rows), prompts)
        means = times_drawn @ table / rows.shape[1]
        results = statistic(means.reshape(len(rows), *values.shape[1:]))
        return results.T.reshape(-1, *drawn.shape[:-1])

    return of


def bootstrap_estimates(
    values: Array,
    confidence: float,
    seed: int = 0,
    *,
    statistic: Statistic = the_means,
    draws: int | None = None,
    method: Method = "BCa",
    limits: Limits = UNBOUNDED,
) -> tuple[Estimate, ...]:
    """The statistics f(Σ_x v_x / X) with intervals that resample whole prompts x. values [X, …] -> m estimates.

    All samples of a prompt stay together. Statistics of equally many prompts with the same seed use the same draws,
    `RESAMPLES` by default. BCa is bias-corrected and accelerated (Efron, JASA 1987), and equals `mean_interval` for
    means; "percentile" is for a statistic that is discontinuous, or too expensive to compute X more times (jackknife).

    An interval always contains its value. For fewer than `FEW` prompts it is the wider of this one and Student's,
    within the limits; for means of equal values it is `unvaried`. For one prompt it is the whole range of the limits;
    without limits it has width 0, which does not mean certainty. Raises InputError without prompts.
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.ndim or not len(data) or not np.isfinite(data).all():
        raise InputError("bootstrap: there must be a finite value for at least one prompt")
    value, count = statistic(data.mean(0, keepdims=True))[0], len(data)
    if count == 1:
        low, high = unvaried(value, count, confidence, limits)
    else:
        low, high = _interval(data, statistic, value, confidence, seed, draws or RESAMPLES, method)
        if count < FEW:
            without_each = statistic((data.sum(0) - data) / (count - 1))
            low, high = widened(low, high, value, without_each, confidence, limits)
        if statistic is the_means:
            alike = np.ptp(data, axis=0).ravel() < ROUNDING
            ends = unvaried(value, count, confidence, limits)
            low, high = (np.where(alike, end, varied) for end, varied in zip(ends, (low, high), strict=True))
    low, high = np.minimum(low, value), np.maximum(high, value)
    return tuple(Estimate(float(v), float(a), float(b), count) for v, a, b in zip(value, low, high, strict=True))


def mean_estimate(values: Sequence[float], confidence: float, seed: int, limits: Limits = UNBOUNDED) -> Estimate:
    """The mean of one value per prompt, with its `mean_interval`."""
    low, high = mean_interval(values, confidence, seed, limits)
    return Estimate(float(np.mean(values)), low, high, len(values))


def _interval(
    data: Array, statistic: Statistic, value: Array, confidence: float, seed: int, draws: int, method: Method
) -> tuple[Array, Array]:
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result: Any = stats.bootstrap(
            (np.arange(len(data)),),
            _from_prompts(data, statistic),
            vectorized=True,
            confidence_level=confidence,
            n_resamples=draws,
            batch=max(1, BATCH_VALUES // data.size),
            method=method,
            rng=np.random.default_rng(seed),
        )
    distribution, interval = result.bootstrap_distribution, result.confidence_interval
    tails = np.quantile(distribution, [(1 - confidence) / 2, (1 + confidence) / 2], axis=-1)
    constant = np.ptp(distribution, axis=-1) < ROUNDING
    low, high = (
        # The acceleration is NaN for statistics that hardly vary.
        np.where(constant, value, np.where(np.isnan(end), tail, end))
        for end, tail in zip((interval.low, interval.high), tails, strict=True)
    )
    return low, high
