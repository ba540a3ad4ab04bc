"""How exploitable a policy is, bounded from below by the best of a few completions.

Legend: X prompts x, n players, K completions of each for each prompt; table[x, i, k, j, l] = P(y_ik ≻ y_jl | x);
π the policy in question, π' one that responds to it, μ the reference policy, τ (`kl_tau`) its KL temperature.

A response chosen because it did well against some samples of π looks better against those than it is. So the samples
are cross-fitted in folds: every fold judges the response chosen by the other folds.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax, xlogy

from alignrun.errors import InputError
from alignrun.evaluation.bootstrap import bootstrap_estimates
from alignrun.evaluation.intervals import UNBOUNDED, Limits
from alignrun.evaluation.results import Bound
from alignrun.evaluation.standings import require_table

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Gain = Callable[[Array, Array], Array]
"""From win rates of M proposals against the selecting and the judging samples, [X, M] each, to the gain, [X]."""

FOLDS = 5
"""The number of folds that the policy's samples are split into, or fewer if there are fewer samples."""
GAIN: Limits = (-0.5, 0.5)
"""The range of P(response ≻ π) − ½."""


def best_response_bound(
    table: Array, target: int, proposers: Sequence[int] | None, confidence: float, seed: int = 0
) -> Bound:
    """A lower bound of the exploitability E_x max_y P(y ≻ π | x) − ½: the best of the completions of `proposers`.

    For each fold of the samples y' of π the completion with the largest mean P(y ≻ y') over the other folds, ŷ, is
    judged by mean P(ŷ ≻ y') over the fold; if none wins more than half, the response is π itself, at ½. The choice does
    not depend on the fold (completions of π in it are not proposed), so E[mean P(ŷ ≻ y')] = E P(ŷ ≻ π | x) ≤ max_y P(y
    ≻ π | x). With more proposals and samples it approaches that from below. If `proposers` is None, all players
    propose. [X, n, K, n, K]. Raises InputError if K < 2 or if one of their comparisons is missing.
    """
    players = range(table.shape[1]) if proposers is None else proposers
    return _bound(table, target, list(players), _best, np.zeros(len(table)), confidence, seed, GAIN)


def regularised_bound(
    table: Array, target: int, reference: int, log_ratio: Array, kl_tau: float, confidence: float, seed: int = 0
) -> Bound:
    """A lower bound of half the duality gap, E_x max_π' P_τ(π' ≻ π | x) − ½, from completions of μ: soft best-of-N.

    P_τ(π' ≻ π) = P(π' ≻ π) − τKL(π'‖μ) + τKL(π‖μ) (arXiv 2312.00886), whose maximum over π' is
    τ log E_{y~μ} exp(P(y ≻ π)/τ) + τKL(π‖μ). For each fold of the samples of π the response π' draws y_1 … y_N from μ
    and keeps y_j with probability w_j ∝ exp(P(y_j ≻ other folds)/τ). Its gain is estimated by
    Σ_j w_j P(y_j ≻ fold) − τ Σ_j w_j log(N w_j) + τ·mean_k log(π/μ)(y_k) − ½, in expectation no more than the truth:
    the pair (y_1 … y_N, j) has divergence E KL(w‖1/N) to the same with j uniform, where y_j is a sample of μ, and y_j
    alone has no more (data processing), so KL(π'‖μ) ≤ E KL(w‖1/N). As N and K grow it approaches the maximum from
    below; for small ones it may be negative, since scores that differ by chance then cost more KL than they gain.

    `log_ratio` [X, K] holds log π(y)/μ(y) of the samples of the target, zeros if that is the reference, whose
    completions in a fold are then not proposed. It must refer to the distributions that were sampled: with truncated
    sampling the result is not a bound. Raises as `best_response_bound` does, and if τ ≤ 0.
    """
    if kl_tau <= 0:
        raise InputError(f"best of n: kl_tau must be positive, not {kl_tau}")
    if log_ratio.shape != (len(table), table.shape[2]) or not np.isfinite(log_ratio).all():
        raise InputError(f"best of n: log_ratio must be finite and [X, K], not {list(log_ratio.shape)}")
    kl = kl_tau * log_ratio.mean(1)
    return _bound(table, target, [reference], partial(_soft_best, kl_tau=kl_tau), kl, confidence, seed, UNBOUNDED)


def _best(selecting: Array, judging: Array) -> Array:
    top = selecting.max(1, keepdims=True)
    ties = selecting >= top - 1e-12
    gain: Array = np.where(ties, judging, 0).sum(1) / ties.sum(1) - 0.5
    return np.where(top[:, 0] > 0.5, gain, 0.0)


def _soft_best(selecting: Array, judging: Array, kl_tau: float) -> Array:
    weights = softmax(selecting / kl_tau, axis=1)
    cost = xlogy(weights, weights * weights.shape[1]).sum(1)
    gain: Array = (weights * judging).sum(1) - 0.5 - kl_tau * cost
    return gain


def _folds(wins: Array, own: Mask, count: int) -> Iterator[tuple[float, Array, Array]]:
    """Each fold's share of the samples, and the win rates of `count` proposals a player on the other folds and on it.

    wins [X, m, N, K] of N completions of m players against K samples; own [m] marks the player who is the target.
    """
    samples = wins.shape[-1]
    for fold in range(min(samples, FOLDS)):
        held_out = np.arange(samples) % min(samples, FOLDS) == fold
        allowed = ~(own[:, None] & held_out)
        proposals = wins[:, allowed & (allowed.cumsum(1) <= count)]
        yield held_out.mean(), proposals[..., ~held_out].mean(-1), proposals[..., held_out].mean(-1)


def _bound(
    table: Array,
    target: int,
    proposers: list[int],
    gain: Gain,
    offset: Array,
    confidence: float,
    seed: int,
    limits: Limits,
) -> Bound:
    require_table(table)
    samples = table.shape[2]
    wins = table[:, proposers][..., target, :]
    if samples < 2:
        raise InputError("best of n: at least two samples per prompt are needed, one to choose and one to judge")
    if not wins.size or np.isnan(wins).any():
        raise InputError("best of n: every proposal must have been compared with every sample of the policy")
    own = np.asarray(proposers) == target
    counts = [2**power for power in range(samples.bit_length()) if 2**power < samples] + [samples]
    gains = [offset + sum(share * gain(*rates) for share, *rates in _folds(wins, own, count)) for count in counts]
    curve = tuple((count * len(proposers), float(g.mean())) for count, g in zip(counts, gains, strict=True))
    (estimate,) = bootstrap_estimates(gains[-1][:, None], confidence, seed, limits=limits)
    return Bound(estimate, samples * len(proposers), curve)
