"""What policies win and lose where a panel of text measures judges, from the measures of their completions.

A member m of the panel prefers y to y' with P_m = σ((s_m(y) − s_m(y'))/t_m), and P is the probability that most members
do. Nothing here bounds what other texts than those given can win: exploitability is that by the best of a pool of
completions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignrun.games import Game, best_response, equilibrium, exploitability, kl, win_rate, win_rates
from alignrun.objectives.votes import majority
from studies.solutions import bradley_terry_rewards, cyclic_share, tilted

Measures = NDArray[np.float64]
"""[..., K, M] the M members' measures of K completions, in units of t_m."""
SOLVED = 256
"""Completions of μ that are the actions of a prompt's game."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The completions of one method's policies; its functions below give a value for each run and prompt, [S, X]."""

    measures: Measures
    """[S, X, K, M]"""
    kl: NDArray[np.float64]
    """[S, X] KL(π‖μ) in nats."""


def in_votes(scores: Mapping[str, Sequence[Sequence[float]]], members: Mapping[str, float]) -> Measures:
    """[X, K, M] measures [X, K] of each member, divided by its t."""
    return np.stack([np.array(scores[name]) / scale for name, scale in members.items()], -1)


def preferred(first: Measures, second: Measures) -> NDArray[np.float64]:
    """[..., K, L] P(y ≻ y') for K completions and L others; leading axes broadcast."""
    margins = torch.as_tensor(first).unsqueeze(-2) - torch.as_tensor(second).unsqueeze(-3)
    chosen: NDArray[np.float64] = majority(torch.sigmoid(margins).movedim(-1, 0)).numpy()
    return chosen


def win_rates_against(judged: Judged, reference: Measures) -> NDArray[np.float64]:
    """[S, X] P(π ≻ μ)."""
    rates: NDArray[np.float64] = preferred(judged.measures, reference).mean((-2, -1))
    return rates


def win_rates_between(first: Judged, second: Judged) -> NDArray[np.float64]:
    """[S, S', X] P(π ≻ π') for all pairs of runs."""
    return np.stack([[preferred(one, other).mean((-2, -1)) for other in second.measures] for one in first.measures])


def wins(texts: Measures, runs: Measures) -> NDArray[np.float64]:
    """[S, X, L] P(y ≻ π) of texts [X, L, M] against the completions [S, X, K, M] of policies."""
    return np.stack([preferred(texts, run).mean(-1) for run in runs])


def exploited(judged: Judged, pools: Sequence[Measures]) -> NDArray[np.float64]:
    """max_y P(y ≻ π) − ½ over a pool [X, L, M], with y chosen on one half of π's completions and tried on the other.

    There is a pool for each half to choose on, without the completions of the other half. Then the expectation is at
    most the exploitability.
    """
    first, second = np.array_split(judged.measures, 2, 2)
    tried = []
    for pool, choosing, trying in zip(pools, (first, second), (second, first), strict=True):
        best = pool[np.arange(len(pool)), wins(pool, choosing).argmax(-1)]
        tried.append(preferred(best[..., None, :], trying).mean((-2, -1)))
    return np.mean(tried, 0) - 0.5


def most_exploited(judged: Judged, pool: Measures) -> NDArray[np.float64]:
    """max_y P(y ≻ π) − ½ over a pool, against all completions of π: on average no less than what the pool can win."""
    best: NDArray[np.float64] = wins(pool, judged.measures).max(-1) - 0.5
    return best


@dataclass(frozen=True, slots=True)
class Solved:
    """An exact solution of every prompt's game, whose actions are completions of μ; values of each prompt, [X]."""

    wins: NDArray[np.float64]
    """P(π ≻ μ)"""
    exploitability: NDArray[np.float64]
    """By any of the game's actions."""
    beaten: NDArray[np.float64]
    """P(equilibrium ≻ π)"""
    kl: NDArray[np.float64]


def games(reference: Measures) -> list[Game]:
    """A game for each prompt, between the first completions of μ; those of equal measures are one action."""
    found = []
    for row in reference[:, :SOLVED]:
        actions, counts = np.unique(row, axis=0, return_counts=True)
        table = torch.as_tensor(preferred(actions, actions))
        found.append(Game(table, torch.as_tensor(counts / counts.sum()), tuple(map(str, range(len(actions))))))
    return found


def solutions(found: Sequence[Game], kl_tau: float) -> dict[str, Solved]:
    """The equilibrium, and RLHF's optimum at the same τ and at the KL of the equilibrium."""
    policies: dict[str, list[Tensor]] = {}
    ends = [equilibrium(game, kl_tau) for game in found]
    for game, end in zip(found, ends, strict=True):
        rewards, distance = bradley_terry_rewards(game), float(kl(end, game.reference))
        against = win_rates(game, game.reference)
        for name, policy in {
            "μ": game.reference,
            "equilibrium": end,
            "RLHF on the win rate": best_response(game, game.reference, kl_tau),
            "RLHF on a Bradley-Terry reward": torch.softmax(game.reference.log() + rewards / kl_tau, 0),
            "RLHF on the win rate, at the equilibrium's KL": tilted(game, against, distance),
            "RLHF on a Bradley-Terry reward, at the equilibrium's KL": tilted(game, rewards, distance),
        }.items():
            policies.setdefault(name, []).append(policy)
    return {name: _solved(found, row, ends) for name, row in policies.items()}


def _solved(found: Sequence[Game], policies: Sequence[Tensor], ends: Sequence[Tensor]) -> Solved:
    rows = [
        (
            win_rate(game, policy, game.reference),
            exploitability(game, policy),
            win_rate(game, end, policy),
            kl(policy, game.reference),
        )
        for game, policy, end in zip(found, policies, ends, strict=True)
    ]
    return Solved(*np.array(rows, dtype=float).T)


def cyclic(found: Sequence[Game]) -> NDArray[np.float64]:
    """[X] the share of triples of completions that form a cycle."""
    return np.array([cyclic_share(game) for game in found])
