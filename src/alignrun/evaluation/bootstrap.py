"""Confidence intervals of numbers that depend on means over prompts: whole prompts are drawn, for all numbers at once.

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
"""From means over prompts, [B, …], one set a draw, to the numbers wanted, [B, m]."""
Method = Literal["BCa", "percentile"]

ROUNDING = 1e-9
"""A number that moves by less from draw to draw is constant: what moves is its rounding."""


def the_means(means: Array) -> Array:
    """The statistic that leaves the means as they are, in one row: [B, …] -> [B, m]."""
    return means.reshape(len(means), -1)


def _from_prompts(values: Array, statistic: Statistic) -> Callable[..., Array]:
    """The statistic of the prompts drawn, as SciPy calls it: [X'] -> [m] and [B, X'] -> [m, B]."""
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
    """The numbers f(Σ_x v_x / X) with intervals from draws of whole prompts x. values [X, …] -> m estimates.

    What was sampled for one prompt stays together. Numbers estimated from equally many prompts with one seed see the
    same draws, `RESAMPLES` unless given. BCa is bias-corrected and accelerated (Efron, JASA 1987), for means that of
    `mean_interval`; "percentile" is for a statistic with jumps, or too costly to compute X more times (jackknife).

    An interval always holds its value. From fewer than `FEW` prompts it is the wider of this one and Student's, within
    the limits of the numbers; means of values that are all alike are `unvaried`. From one prompt it is all that the
    limits allow, and without limits it has no width: that is no certainty. Raises InputError without prompts.
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
    """The mean over prompts of one value each, with its `mean_interval`."""
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
        # Numbers that hardly differ have no acceleration.
        np.where(constant, value, np.where(np.isnan(end), tail, end))
        for end, tail in zip((interval.low, interval.high), tails, strict=True)
    )
    return low, high
