"""Ratings for games with cycles, where no strength orders the players: deviation ratings and α-rank.

Legend: n players, W[i, j] = P(i ≻ j), A = W − ½, which is antisymmetric.
"""

import numpy as np
from scipy.optimize import linprog

from alignrun.errors import RunError
from alignrun.evaluation.standings import Array

TOLERANCE = 1e-9
INTENSITY = 10.0
"""α, the strength of selection in α-rank: a win rate of .6 is imitated e² times as readily as it is given up."""
POPULATION = 50
"""m, the size of α-rank's population."""


def deviation_ratings(matrix: Array) -> Array:
    """(Ap)[i] for the p that makes the sorted (Ap)[i] least, the largest first. arXiv 2502.11645. [n, n] -> [n].

    The paper rates a strategy by what deviating to it gains against the coarse correlated equilibrium whose sorted
    deviation gains are least. In a symmetric zero-sum game that equilibrium may be taken to be symmetric with a value
    of 0, and the gain of i depends on its marginal p alone. The ratings are unique, 0 for every player in the support
    of an equilibrium and at most 0 for others, and copies of a player change nothing. Raises RunError if a linear
    program has no solution.
    """
    edges = (matrix - matrix.T) / 2
    n = len(edges)
    rating = np.zeros(n)
    settled = np.zeros(n, dtype=bool)
    while not settled.all():
        # Minimise t over (p, t) with (Ap)[i] ≤ t for open players and (Ap)[i] ≤ r_i for settled ones.
        bounded = np.where(settled, rating + TOLERANCE, 0.0)
        found = linprog(
            c=[0.0] * n + [1.0],
            A_ub=np.hstack([edges, np.where(settled, 0.0, -1.0)[:, None]]),
            b_ub=bounded,
            A_eq=[[1.0] * n + [0.0]],
            b_eq=[1.0],
            bounds=[(0, None)] * n + [(None, None)],
        )
        if not found.success:
            raise RunError(f"ratings: the linear program has no solution: {found.message}")
        # The prices of the open players sum to 1. Where one is positive no solution is below t.
        price = np.where(settled, 0.0, -found.ineqlin.marginals)
        now = price > max(TOLERANCE, 1e-6 * price.max())
        rating[now], settled[now] = found.x[n], True
    rounded: Array = np.round(rating, 7) + 0.0  # no −0
    return rounded


def alpha_rank(matrix: Array, intensity: float = INTENSITY, population: int = POPULATION) -> Array:
    """The stationary distribution of a population of m in which i is replaced by j with probability ρ_ij / (n − 1).

    ρ_ij = (1 − e^(−u)) / (1 − e^(−mu)), u = α(A[j, i] − A[i, j]), 1/m at u = 0: that a single j takes over a population
    of i. arXiv 1903.01373, single population. [n, n] -> [n].
    """
    edges = (matrix - matrix.T) / 2
    gain = intensity * (edges.T - edges)
    size = np.abs(gain)
    with np.errstate(invalid="ignore", divide="ignore"):
        upwards = np.where(size == 0, 1 / population, np.expm1(-size) / np.expm1(-population * size))
    chain = np.where(gain >= 0, upwards, upwards * np.exp(-(population - 1) * size))
    n = len(chain)
    # State reduction (Grassmann, Taksar and Heyman, 1985): no subtraction, so that tiny probabilities stay exact.
    for last in range(n - 1, 0, -1):
        chain[:last, last] /= max(chain[last, :last].sum(), np.finfo(float).tiny)
        chain[:last, :last] += np.outer(chain[:last, last], chain[last, :last])
    share = np.ones(n)
    for place in range(1, n):
        share[place] = share[:place] @ chain[:place, place]
        share /= share[: place + 1].max()
    normalised: Array = share / share.sum()
    return normalised
