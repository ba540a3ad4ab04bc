"""Values and texts as a few characters."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignrun.security.text import visible

BLOCKS = "▁▂▃▄▅▆▇█"
ABSENT = "–"


def sparkline(values: ArrayLike, width: int) -> str:
    """A block for every value, or for the mean of each stretch where there are more values than room.

    The lowest block is the least of what is drawn and the highest the largest; equal values are all low. A gap is
    where there is no finite value.
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


def clean(text: object) -> str:
    """Text that others wrote, in one line that can do nothing to a terminal."""
    return " ".join(visible(str(text)).split())


def figure(value: float) -> str:
    """A number in at most ten characters, nearly always."""
    if not math.isfinite(value):
        return ABSENT
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def arrow(values: NDArray[np.float64]) -> str:
    """Where the last value lies from the one before."""
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
