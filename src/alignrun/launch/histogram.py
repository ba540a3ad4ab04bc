"""Counts as bars of text."""

from collections.abc import Sequence
from math import ceil

BINS, WIDTH = 12, 40
"""The largest number of lines, and the characters of the longest bar."""


def histogram(values: Sequence[int]) -> list[str]:
    """One line for each bin of whole numbers: its range, a bar, and how many of the values lie in it."""
    low, high = min(values), max(values)
    size = bin_size(high - low + 1)
    first = low // size
    counts = [0] * (high // size - first + 1)
    for value in values:
        counts[value // size - first] += 1
    stretches = [(place + first) * size for place in range(len(counts))]
    names = [str(start) if size == 1 else f"{start}-{start + size - 1}" for start in stretches]
    width, most = max(map(len, names)), max(counts)
    # A bar of length 0 would look like an empty bin.
    bars = ["█" * ceil(WIDTH * count / most) for count in counts]
    return [
        f"{name:>{width}}  {bar} {count:,}" if count else f"{name:>{width}}"
        for name, bar, count in zip(names, bars, counts, strict=True)
    ]


def bin_size(span: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, … at which a span of whole numbers, wherever it starts, fits `BINS` bins."""
    size, steps = 1, (2, 5, 10)
    power = 1
    while ceil(span / size) + 1 > BINS and span > BINS:
        size = next((power * step for step in steps if power * step > size), size)
        power = size if size == power * 10 else power
    return size


def described(values: Sequence[int]) -> str:
    """The range, the median and the 95th percentile of token counts, each of them a value that occurs."""
    ordered = sorted(values)
    middle, late = ordered[(len(ordered) - 1) // 2], ordered[ceil(0.95 * len(ordered)) - 1]
    return f"{ordered[0]:,} to {ordered[-1]:,} tokens, median {middle:,}, 95% at most {late:,}"
