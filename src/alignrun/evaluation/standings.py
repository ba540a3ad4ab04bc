"""The statistics of a table of comparisons: win rates, ratings, equilibrium, cycles.

Legend: X prompts, n players, K completions of each player for each prompt; table[x, i, k, j, l] = P(y_ik ≻ y_jl | x),
NaN if it was not compared; W[i, j] = P(i ≻ j), the row beats the column.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, minimize
from scipy.special import expit, xlogy

from alignrun.errors import InputError, RunError
from alignrun.evaluation.bootstrap import bootstrap_estimates
from alignrun.evaluation.intervals import SHARE
from alignrun.evaluation.results import Estimate
from alignrun.evaluation.settled import verdict
from alignrun.games import largest_equilibrium

Array = NDArray[np.float64]

ELO = 400 / np.log(10)
"""Elo points per unit of Bradley-Terry strength."""
SHARE_DRAWS = 500
"""Bootstrap draws for the interval of an equilibrium; each solves a linear program."""
TIED = 1e-7
"""Win rates closer than this are equal, as in the linear program."""
NEWTON_STEPS = 100


def require_table(table: Array) -> None:
    """Raise InputError unless the table is a comparison table: [X, n, K, n, K], P(y ≻ y') + P(y' ≻ y) = 1, n ≥ 2."""
    if table.ndim != 5 or table.shape[1:3] != table.shape[3:] or table.shape[1] < 2 or not table.size:
        raise InputError(f"comparisons: the table must be [X, n, K, n, K] with n ≥ 2, not {list(table.shape)}")
    mirrored = table.transpose(0, 3, 4, 1, 2)
    asked = ~np.isnan(table)
    if (asked & ~(np.abs(table + mirrored - 1) <= 1e-6)).any():
        raise InputError("comparisons: P(y ≻ y') and P(y' ≻ y) must both be there and sum to 1")


def prompt_win_rates(table: Array) -> Array:
    """W_x[i, j] = the mean of P(y_ik ≻ y_jl | x) over the compared pairs (k, l), ½ on the diagonal.

    [X, n, K, n, K] -> [X, n, n]. Raises InputError if two players were never compared for a prompt.
    """
    require_table(table)
    asked = ~np.isnan(table)
    counts = asked.sum((2, 4))
    rows, columns = np.triu_indices(table.shape[1], 1)
    missing = np.argwhere(counts[:, rows, columns] == 0)
    if len(missing):
        x, pair = missing[0]
        raise InputError(f"comparisons: players {rows[pair]} and {columns[pair]} were not compared for prompt {x}")
    rates = np.full(counts.shape, 0.5)
    sums = np.where(asked, table, 0).sum((2, 4))
    rates[:, rows, columns] = sums[:, rows, columns] / counts[:, rows, columns]
    rates[:, columns, rows] = 1 - rates[:, rows, columns]
    return rates


def win_matrix(prompt_rates: Array, confidence: float, seed: int = 0) -> tuple[tuple[Estimate, ...], ...]:
    """W = mean over prompts of the W_x, with intervals over prompts; W[j][i] mirrors W[i][j]. [X, n, n] -> n × n."""
    players = prompt_rates.shape[1]
    rows, columns = np.triu_indices(players, 1)
    matrix = [[Estimate(0.5, 0.5, 0.5)] * players for _ in range(players)]
    cells = bootstrap_estimates(prompt_rates[:, rows, columns], confidence, seed, limits=SHARE)
    for i, j, cell in zip(rows, columns, cells, strict=True):
        matrix[i][j] = cell
        matrix[j][i] = Estimate(1 - cell.value, 1 - cell.high, 1 - cell.low, cell.prompts)
    return tuple(map(tuple, matrix))


def averages(prompt_rates: Array, confidence: float, seed: int = 0) -> tuple[Estimate, ...]:
    """How often each player beats the others, Σ_{j≠i} W[i, j] / (n − 1), with intervals. [X, n, n] -> n."""
    others = prompt_rates.shape[1] - 1
    return bootstrap_estimates((prompt_rates.sum(2) - 0.5) / others, confidence, seed, limits=SHARE)


def _most_even(edges: Array, share: Array) -> Array:
    """The equilibrium of maximum entropy, given an equilibrium of largest support.

    An action in the support of an equilibrium p does as well as p, (edges·p)[i] = 0. So the equilibria are the
    distributions in the kernel of the support's edges that no other action beats.
    """
    support = share > 0
    _, size, basis = np.linalg.svd(edges[np.ix_(support, support)])
    kernel = basis[size <= TIED]
    if len(kernel) < 2:
        return share
    outside = -edges[np.ix_(~support, support)] @ kernel.T
    rows = np.vstack([kernel.T, outside])
    at_least = np.zeros(len(rows))
    result = minimize(
        lambda z: float(xlogy(p := np.clip(z @ kernel, 0, None), p).sum()),
        kernel @ share[support],
        jac=lambda z: kernel @ (np.log(np.clip(z @ kernel, 1e-12, None)) + 1),
        method="SLSQP",
        constraints=[LinearConstraint(rows, at_least, np.inf), LinearConstraint(kernel.sum(1), 1, 1)],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    even = np.zeros_like(share)
    even[support] = np.clip(result.x @ kernel, 0, None)
    even /= even.sum() or 1.0
    return even if even.any() and (edges @ even).max() <= TIED else share


def nash_average(matrix: Array) -> tuple[Array, float]:
    """The Nash equilibrium p of maximum entropy, max_i (Wp)[i] = ½, and its value pᵀWp = ½: Nash averaging.

    arXiv 1806.02643 §3. If many mixtures are equilibria, a linear program alone would return an arbitrary one. Here
    copies of the best policy share equally, and equal policies have 1/n each. If the search for the largest entropy
    fails, the result is an equilibrium of largest support. [n, n] -> [n], ½.
    """
    edges = (matrix - matrix.T) / 2
    share = _most_even(edges, largest_equilibrium(matrix))
    return share, float(share @ matrix @ share)


def shares(prompt_rates: Array, confidence: float, seed: int = 0) -> tuple[Estimate, ...]:
    """The players' probabilities in `nash_average`, with percentile intervals of `SHARE_DRAWS` draws. [X, n, n] -> n.

    Shares jump when two players change order, so intervals of near equals are wide, as they should be. Coverage holds
    only if the support is certain.
    """
    return bootstrap_estimates(
        prompt_rates,
        confidence,
        seed,
        statistic=lambda means: np.stack([nash_average(matrix)[0] for matrix in means]),
        draws=SHARE_DRAWS,
        method="percentile",
        limits=SHARE,
    )


def elo(matrix: Array, anchor: int | None, games: int) -> Array:
    """Elo ratings 400/ln 10 · (s_i − s_anchor) that maximise the likelihood Σ_{i≠j} W'[i, j] log σ(s_i − s_j).

    The Bradley-Terry model (Biometrika 1952) of W' = (games·W + ½)/(games + 1): the `games` of every pair plus one
    drawn game, which keeps the rating of a policy that always wins finite. Newton steps damped as in arXiv 0910.4627
    cannot diverge. Without an anchor the mean rating is 0. [..., n, n] -> [..., n]. Raises RunError if they do not
    converge.
    """
    wins = (games * matrix + 0.5) / (games + 1)
    strength = np.zeros(matrix.shape[:-1])
    for _ in range(NEWTON_STEPS):
        expected = expit(strength[..., :, None] - strength[..., None, :])
        slopes = expected * (1 - expected)
        curvature = slopes.sum(-1)[..., None] * np.eye(len(slopes[0])) - slopes
        # Strengths are determined up to a constant; adding 1 keeps their sum at zero.
        step = np.linalg.solve(curvature + 1, (wins - expected).sum(-1)[..., None])[..., 0]
        spread = np.ptp(step, axis=-1, keepdims=True)
        strength += step * np.log1p(spread) / np.maximum(spread, 1e-300)
        if spread.max() < 1e-9:
            zero = strength.mean(-1, keepdims=True) if anchor is None else strength[..., anchor, None]
            rating: Array = ELO * (strength - zero)
            return rating
    raise RunError(f"ratings: no maximum of the likelihood after {NEWTON_STEPS} steps")


def ratings(prompt_rates: Array, anchor: int | None, confidence: float, seed: int = 0) -> tuple[Estimate, ...]:
    """The players' `elo` with intervals, with one game per pair and prompt; exactly 0 for the anchor."""
    games = len(prompt_rates)
    return bootstrap_estimates(prompt_rates, confidence, seed, statistic=lambda means: elo(means, anchor, games))


def misfit(matrix: Array, rating: Array) -> float:
    """The misfit of ratings: max_ij |W[i, j] − σ((R_i − R_j)·ln 10/400)|. [n, n], [n] -> scalar."""
    return float(np.abs(matrix - expit((rating[:, None] - rating[None]) / ELO)).max())


def cycles(matrix: Sequence[Sequence[Estimate]], names: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """Every cycle a ≻ b ≻ c ≻ a whose three wins are settled, listed once, starting at its first player."""
    beats = [[verdict(cell) > 0 for cell in row] for row in matrix]
    return tuple(
        (names[a], names[b], names[c])
        for a, b, c in permutations(range(len(names)), 3)
        if a < min(b, c) and beats[a][b] and beats[b][c] and beats[c][a]
    )
