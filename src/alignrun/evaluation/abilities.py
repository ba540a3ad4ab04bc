"""The abilities of judges: how reliably each of several judges prefers the better of two players.

Legend: X prompts, M judges, n players; W[k, i, j] = P_k(i ≻ j), the row beats the column.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from alignrun.errors import RunError
from alignrun.evaluation.bootstrap import bootstrap_estimates
from alignrun.evaluation.results import Estimate
from alignrun.evaluation.standings import ELO, SHARE_DRAWS, Array, elo

NOTHING = 1e-6
"""Abilities whose mean is smaller than this, relative to the largest, have no scale."""


def _likelihood(point: Array, wins: Array) -> tuple[float, Array, Array]:
    """−Σ_k Σ_{i≠j} W_k[i, j] log σ(θ_k(R_i − R_j)) at (θ, R), with its gradient and Hessian: [M + n].

    Only θ_k(R_i − R_j) matters. So that the maximum is a point, a penalty that is 0 there makes Σ θ² = Σ R², Σ R = 0.
    """
    judges = len(wins)
    theta, strength = point[:judges], point[judges:]
    apart = strength[:, None] - strength
    odds = theta[:, None, None] * apart
    expected = expit(odds)
    error, slope = expected - wins, expected * (1 - expected)
    lean = error.sum(2)
    gradient = np.concatenate([(error * apart).sum((1, 2)) / 2, theta @ lean])
    hessian = np.zeros((len(point), len(point)))
    hessian[:judges, :judges] = np.diag((slope * apart**2).sum((1, 2)) / 2)
    hessian[:judges, judges:] = lean + theta[:, None] * (slope * apart).sum(2)
    hessian[judges:, :judges] = hessian[:judges, judges:].T
    curved = np.tensordot(theta**2, slope, 1)
    hessian[judges:, judges:] = np.diag(curved.sum(1)) - curved + 1
    gradient[judges:] += strength.sum()
    sign = np.repeat([1.0, -1.0], [judges, len(strength)])
    uneven = (sign * point) @ point
    gradient += uneven * sign * point / 2
    hessian += np.outer(sign * point, sign * point) + uneven * np.diag(sign) / 2
    off_pairs = ~np.eye(len(strength), dtype=bool)
    value = -float((wins * log_expit(odds))[:, off_pairs].sum())
    return value + (uneven**2 / 4 + strength.sum() ** 2) / 2, gradient, hessian


def _start(wins: Array) -> Array:
    """(θ, R) from the rank-one matrix nearest to the strengths that each judge gives by itself."""
    alone = elo(wins, None, 1_000_000) / ELO
    left, size, right = np.linalg.svd(alone)
    start: Array = np.concatenate([left[:, 0], right[0]]) * np.sqrt(size[0])
    return start


def fit(wins: Array, start: Array | None = None) -> Array:
    """(θ, R) that maximise Σ_k Σ_{i≠j} W_k[i, j] log σ(θ_k(R_i − R_j)), up to scale: am-ELO. [M, n, n] -> [M + n].

    arXiv 2505.03475: judge k has the ability θ_k and player i the rating R_i; ½ everywhere is θ_k = 0, and a judge
    that prefers the worse player has θ_k < 0. W must lie in (0, 1), or the maximum is infinite. The likelihood is not
    concave: the search starts at the rank-one matrix θRᵀ nearest to the judges' own strengths. Raises RunError if it
    does not converge.
    """
    found = minimize(
        lambda point: _likelihood(point, wins)[:2],
        _start(wins) if start is None else start,
        jac=True,
        hess=lambda point: _likelihood(point, wins)[2],
        method="trust-exact",
        options={"gtol": 1e-8, "maxiter": 1000},
    )
    if not found.success and np.abs(found.jac).max() > 1e-5:
        raise RunError(f"abilities: no maximum of the likelihood: {found.message}")
    point: Array = found.x
    return point


def scaled(point: Array, judges: int, anchor: int | None) -> Array:
    """(θ, R) with a mean ability of 1, and R in Elo points, 0 for the anchor or else on average. [M + n] -> [M + n].

    The paper's abilities sum to 1; with a mean of 1 the ratings are those of a judge of mean ability, so that one
    judge alone has `elo`'s.
    """
    theta, strength = point[:judges], point[judges:]
    mean = float(theta.mean())
    mean = mean if abs(mean) > NOTHING * np.abs(theta).max() else NOTHING
    zero = strength.mean() if anchor is None else strength[anchor]
    return np.concatenate([theta / mean, ELO * mean * (strength - zero)])


def abilities(
    rates: Array, anchor: int | None, confidence: float, seed: int = 0
) -> tuple[tuple[Estimate, ...], tuple[Estimate, ...]] | None:
    """The judges' abilities and the players' ratings by `fit`, with percentile intervals. [X, M, n, n] -> M and n.

    The games of a pair are one for each prompt and, as in `elo`, a drawn one for each judge, which keeps abilities
    finite. None if the judges say ½ throughout, or the interval of their mean ability has 0 in it: then nothing says
    which player is better. None as well if the likelihood has no maximum that is found.
    """
    games, judges = len(rates), rates.shape[1]

    def wins(means: Array) -> Array:
        certain: Array = (games * means + 0.5) / (games + 1)
        return certain

    try:
        point = fit(wins(rates.mean(0)))
        theta = point[:judges]
        if abs(theta.mean()) <= NOTHING * np.abs(theta).max() or np.abs(point).max() < NOTHING:
            return None

        def statistic(means: Array) -> Array:
            """The scaled point of each row of means, and the mean ability relative to the largest."""
            points = [fit(wins(one), point) for one in means]
            scales = [[one[:judges].mean() / np.abs(one[:judges]).max()] for one in points]
            return np.hstack([np.stack([scaled(one, judges, anchor) for one in points]), scales])

        *found, scale = bootstrap_estimates(
            rates, confidence, seed, statistic=statistic, draws=SHARE_DRAWS, method="percentile"
        )
    except RunError:  # the win rates are known without it
        return None
    if scale.low <= 0 <= scale.high:  # its sign, and so who is better, is not settled
        return None
    return tuple(found[:judges]), tuple(found[judges:])
