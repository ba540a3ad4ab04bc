"""Policies without training: one of N completions of a model, chosen by the matrix of their preferences.

Legend: N candidates y_1 … y_N of one model for a prompt; P[i, j] = P(y_i ≻ y_j | x), the row beats the column; w the
distribution on the candidates from which one is drawn.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb

import numpy as np
from scipy.special import gammaln, softmax, xlogy

from alignrun.config import ComparedPairs, Selection
from alignrun.evaluation.comparisons import compare
from alignrun.evaluation.completions import Drawn
from alignrun.evaluation.standings import Array, elo, nash_average
from alignrun.preferences.base import Preference

LEVEL = 1e-9
"""Candidates whose scores differ by less share the first place."""
ENUMERATED = 5000
"""The most sets of candidates over which an exact policy is summed."""


@dataclass(frozen=True, slots=True)
class Chooser:
    """A rule with its settings."""

    selection: Selection
    candidates: int
    """N."""
    steps: int
    """T, for `mirror`."""
    eta: float
    """η, for `mirror`."""

    def weights(self, table: Array) -> Array:
        """w: the distribution on the candidates. [N, N] -> [N].

        `best_of_nash`: the equilibrium max_i (Pw)[i] = ½, that of maximum entropy if there are several, so that copies
        share equally (arXiv 2609.08082). `mirror`: w_{t+1} ∝ w_t exp(η P w_t) from a uniform w_0, the last of T steps.
        `borda`: argmax_i Σ_j P[i, j]. `bradley_terry`: argmax_i s_i of the strengths fitted to P; Σ_j P[i, j] is
        sufficient for them, so it is the choice of `borda`. Level candidates share equally.
        """
        match self.selection:
            case Selection.best_of_nash:
                return nash_average(table)[0]
            case Selection.mirror:
                logits = np.zeros(len(table))
                for _ in range(self.steps):
                    logits += self.eta * (table @ softmax(logits))
                last: Array = softmax(logits)
                return last
            case Selection.borda:
                return _first(table.mean(1))
            case Selection.bradley_terry:
                return _first(elo(table, None, len(table)))


def _first(scores: Array) -> Array:
    """The uniform distribution on the largest scores."""
    level = scores >= scores.max() - LEVEL * max(1.0, np.abs(scores).max())
    shared: Array = level / level.sum()
    return shared


def chosen(
    drawn: Drawn, chooser: Chooser, preference: Preference, prompts: Sequence[str], stream: str
) -> tuple[Drawn, Array]:
    """One of every N completions: [X, K·N] completions -> [X, K], and KL(w‖1/N), [X, K].

    The K groups are independent, so that the chosen completions are independent samples of one policy.
    `log_probs` remain those under the model. `stream` selects the random numbers.
    """
    size = chooser.candidates
    samples = len(drawn.texts[0]) // size
    groups = [texts[k * size : (k + 1) * size] for texts in drawn.texts for k in range(samples)]
    asked = [prompt for prompt in prompts for _ in range(samples)]
    tables = compare(preference, asked, [groups], ComparedPairs.all)[:, 0, :, 0, :]
    different, which = np.unique(tables, axis=0, return_inverse=True)
    weights = np.stack([chooser.weights(table) for table in different])[which.ravel()]
    generator = np.random.default_rng(int(hashlib.sha256(stream.encode()).hexdigest()[:16], 16))
    picked = [int(generator.choice(size, p=row / row.sum())) for row in weights]
    places = [[k * size + picked[x * samples + k] for k in range(samples)] for x in range(len(prompts))]

    def taken(rows: Sequence[Sequence[object]]) -> Iterator[list[object]]:
        return ([row[place] for place in kept] for row, kept in zip(rows, places, strict=False))

    fields = (drawn.texts, drawn.tokens, drawn.log_probs, drawn.ends)
    divergence = xlogy(weights, weights * size).sum(1).reshape(len(prompts), samples)
    return Drawn(*(list(taken(rows)) for rows in fields)), divergence  # type: ignore[arg-type]


def enumerable(actions: int, candidates: int) -> bool:
    """Whether `exact_choice` can sum over all sets of candidates."""
    return comb(actions + candidates - 1, candidates) <= ENUMERATED


def exact_choice(chooser: Chooser, preferences: Array, model: Array) -> Array:
    """The policy of a rule on a game: Σ over multisets of N actions, each drawn from the model, of their w.

    The multiset with counts c has probability N! Π_a model[a]^c[a] / c[a]!. [n, n], [n] -> [n].
    """
    policy = np.zeros_like(model)
    size = chooser.candidates
    for members in combinations_with_replacement(range(len(model)), size):
        counts = np.bincount(members, minlength=len(model))
        log_probability = gammaln(size + 1) + (xlogy(counts, model) - gammaln(counts + 1)).sum()
        weights = chooser.weights(preferences[np.ix_(members, members)])
        np.add.at(policy, list(members), np.exp(log_probability) * weights)
    return policy
