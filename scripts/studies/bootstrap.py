"""Intervals over prompts and seeds."""

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000


def interval(
    *terms: NDArray[np.float64], weights: NDArray[np.float64] | None = None, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The sum of the terms' means, with its percentile bootstrap interval over prompts and seeds.

    A term is [X], [S, X] or [S, S', X]. The prompts are drawn once for all terms, since all methods played the same;
    seeds are drawn for each axis. `weights` [X] say how much a prompt counts, by default as much as any other.
    """
    rng = np.random.default_rng(0)
    weight = np.ones(terms[0].shape[-1]) if weights is None else weights

    def drawn(count: int) -> NDArray[np.float64]:
        """[R, count] how often each is drawn, as shares."""
        return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count

    prompts = drawn(len(weight)) * weight
    prompts /= prompts.sum(1, keepdims=True)
    sums = np.zeros(RESAMPLES)
    for term in terms:
        values = np.broadcast_to(term, (RESAMPLES, *term.shape))
        for seeds in term.shape[:-1]:
            values = np.einsum("rs,rs...->r...", drawn(seeds), values)
        sums += np.einsum("rx,rx->r", prompts, values)
    low, high = np.quantile(sums, [(1 - confidence) / 2, (1 + confidence) / 2])
    centre = sum(np.average(term, axis=-1, weights=weight).mean() for term in terms)
    return float(centre), float(low), float(high)
