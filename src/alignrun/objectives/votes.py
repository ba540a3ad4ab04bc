"""How the preferences of several judges become one.

Legend: M judges, B pairs (y, y'); votes are P_m(y ≻ y' | x). A rule of one pair gives 1 − its value at 1 − votes.
"""

import torch
from torch import Tensor


def majority(votes: Tensor) -> Tensor:
    """[...] P(more than half vote yes) + ½ P(exactly half do), for votes [M, ...] that are independent.

    The number of yes votes is Poisson-binomial; its distribution is built up judge by judge, exactly.
    """
    judges = len(votes)
    counts = votes.new_zeros(judges + 1, *votes.shape[1:])
    counts[0] = 1
    for vote in votes:
        counts[1:] = counts[1:] * (1 - vote) + counts[:-1] * vote
        counts[0] = counts[0] * (1 - vote)
    won = counts[judges // 2 + 1 :].sum(0)
    return won if judges % 2 else won + counts[judges // 2] / 2


def weighted_mean(votes: Tensor, weights: Tensor) -> Tensor:
    """[B] Σ_m w_m P_m / Σ_m w_m, for votes [M, B] and weights [M]."""
    return weights.to(votes) @ votes / weights.to(votes).sum()


def egalitarian(votes: Tensor) -> Tensor:
    """[...] ½(1 + min_m P_m(y ≻ y') − min_m P_m(y' ≻ y)) = ½(min_m P_m + max_m P_m), for votes [M, ...].

    Each completion counts as much as it does to the judge whom it serves worst. No antisymmetric function of a pair is
    min_m P_m itself: judges who disagree would have both completions lose.
    """
    return (votes.amin(0) + votes.amax(0)) / 2


def worst_served(votes: Tensor) -> Tensor:
    """[B] the votes of the judge with the lowest mean over the B pairs, for votes [M, B]; the mean of tied judges.

    Its gradient with respect to the policy of y is that of min_m P_m(π ≻ π'): the step of MaxMin-RLHF (arXiv 2402.08925
    algorithm 1), with the win rate as the utility of a judge.
    """
    means = votes.mean(1)
    return votes[torch.isclose(means, means.min(), rtol=0, atol=1e-12)].mean(0)
