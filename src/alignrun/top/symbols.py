"""Compact text for numbers and series."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCKS = "▁▂▃▄▅▆▇█"
ABSENT = "–"


def sparkline(values: ArrayLike, width: int) -> str:
    """A block character per value, or per mean of a stretch if there are more values than columns.

    The lowest block is the minimum and the highest the maximum; equal values are all low. A gap marks a value that is
    not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) > width:
        data = _stretch_means(data, width)
    finite = np.isfinite(data)
    if not finite.any():
        return " " * len(data)
    low, high = float(data[finite].min()), float(data[finite].max())
    flat = high - low <= 1e-9 * max(abs(low), abs(high))  # equal up to rounding
    levels = np.zeros(len(data), dtype=np.int64)
    if not flat:
        levels[finite] = np.rint((data[finite] - low) / (high - low) * (len(BLOCKS) - 1))
    return "".join(BLOCKS[level] if drawn else " " for level, drawn in zip(levels, finite, strict=True))


def figure(value: float) -> str:
    """A number in at most ten characters, with rare exceptions."""
    if not math.isfinite(value):
        return ABSENT
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def arrow(values: NDArray[np.float64]) -> str:
    """The direction from the last but one value to the last."""
    if len(values) < 2 or not np.isfinite(values[-2:]).all():
        return " "
    return "↑" if values[-1] > values[-2] else "↓" if values[-1] < values[-2] else "→"


def _stretch_means(data: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    starts = np.arange(width) * len(data) // width
    finite = np.isfinite(data)
    counts = np.add.reduceat(finite.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(finite, data, 0.0), starts)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(width, np.nan), where=counts > 0)
    return means
