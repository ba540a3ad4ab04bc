"""Comparisons of all policies' completions of the same prompts, judged by one preference.

Shape legend: X prompts, n players, K completions of each for a prompt.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from alignrun.config import ComparedPairs
from alignrun.preferences.base import Preference

Texts = Sequence[Sequence[Sequence[str]]]
"""[n, X, K] completions."""
QUESTIONS = 4096
"""The smallest number of pairs per call of the preference; the pairs of a prompt are never split."""


def mean_win_rates(
    preference: Preference,
    prompts: Sequence[str],
    ours: Sequence[Sequence[str]],
    theirs: Sequence[Sequence[str]],
    pairing: ComparedPairs,
) -> NDArray[np.float64]:
    """[X] P(ours ≻ theirs | x), the mean over the pairs of completions [X, K]."""
    table = compare(preference, prompts, [ours, theirs], pairing, own=False)
    rates: NDArray[np.float64] = np.nanmean(table[:, 0, :, 1, :], axis=(1, 2))
    return rates


def compare(
    preference: Preference, prompts: Sequence[str], texts: Texts, pairing: ComparedPairs, *, own: bool = True
) -> NDArray[np.float64]:
    """[X, n, K, n, K] P(y_ik ≻ y_jl | x), antisymmetric; NaN for pairs that were not compared.

    A repeated pair of texts is judged once, in one order: preferences are antisymmetric, if necessary by judging both
    orders themselves. Equal texts tie without being judged.
    """
    players, samples = len(texts), len(texts[0][0])
    table = np.full((len(prompts), players, samples, players, samples), np.nan)
    pairs = list(_pairs(players, samples, pairing, own))
    for group in _groups(len(prompts), pairs):
        places: dict[tuple[int, str, str], list[tuple[int, int, int, int, int]]] = {}
        for x in group:
            for i, k, j, other in pairs:
                first, second = texts[i][x][k], texts[j][x][other]
                if first == second:
                    table[x, i, k, j, other] = table[x, j, other, i, k] = 0.5
                elif first < second:
                    places.setdefault((x, first, second), []).append((x, i, k, j, other))
                else:
                    places.setdefault((x, second, first), []).append((x, j, other, i, k))
        if not places:
            continue
        asked = list(places)
        answers = preference([prompts[x] for x, _, _ in asked], [a for _, a, _ in asked], [b for _, _, b in asked])
        for question, probability in zip(asked, answers.double().tolist(), strict=True):
            for x, i, k, j, other in places[question]:
                table[x, i, k, j, other], table[x, j, other, i, k] = probability, 1 - probability
    return table


def _pairs(players: int, samples: int, pairing: ComparedPairs, own: bool) -> Iterator[tuple[int, int, int, int]]:
    """Each unordered pair of completions once, as (player, sample, player, sample)."""
    for i in range(players):
        for j in range(i, players):
            for k in range(samples):
                if i == j:
                    yield i, k, i, k
                    if own and pairing is ComparedPairs.all:
                        yield from ((i, k, i, other) for other in range(k + 1, samples))
                elif pairing is ComparedPairs.all:
                    yield from ((i, k, j, other) for other in range(samples))
                else:
                    yield i, k, j, k


def _groups(prompts: int, pairs: Sequence[object]) -> Iterator[range]:
    size = max(1, QUESTIONS // len(pairs))
    for start in range(0, prompts, size):
        yield range(start, min(start + size, prompts))
