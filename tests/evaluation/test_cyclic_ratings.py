"""Deviation ratings and α-rank: closed forms, an independent linear program, and OpenSpiel's numbers."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from alignrun.evaluation.cyclic_ratings import alpha_rank, deviation_ratings
from alignrun.games import CYC, RPS, exploitability, nash_equilibrium

CYCLE = CYC.preferences.numpy()
FOUR = np.full((4, 4), 0.5)
"""The cycle and a fourth player that loses to all three."""
FOUR[:3, :3] = CYCLE
FOUR[3, :3], FOUR[:3, 3] = (0.4, 0.45, 0.3), (0.6, 0.55, 0.7)


def lexicographic(matrix: np.ndarray) -> np.ndarray:
    """The paper's form: joint distributions σ of two players, and the deviation gains of both, least one by one.

    δ_1(i') = Σ_ij σ_ij (A[i', j] − A[i, j]), δ_2(j') = Σ_ij σ_ij (A[j', i] + A[i, j]). A gain is settled if no σ that
    keeps the others has a smaller one.
    """
    edges, n = matrix - 0.5, len(matrix)
    first = np.stack([(edges[k][None, :] - edges).ravel() for k in range(n)])
    second = np.stack([(edges[k][:, None] + edges).ravel() for k in range(n)])
    gains = np.vstack([first, second])
    value = np.full(2 * n, np.nan)
    while np.isnan(value).any():
        free = np.isnan(value)
        rows = np.hstack([gains, -free[:, None].astype(float)])
        limits = {"A_eq": [[1.0] * n * n + [0.0]], "b_eq": [1.0], "bounds": [(0, None)] * (n * n) + [(None, None)]}
        bound = np.where(free, 0.0, value + 1e-9)
        top = linprog([0.0] * n * n + [1.0], A_ub=rows, b_ub=bound, **limits).x[-1]
        capped = np.where(free, top + 1e-9, bound)
        least = [
            linprog([*gains[k], 0.0], A_ub=np.hstack([gains, np.zeros((2 * n, 1))]), b_ub=capped, **limits).fun
            for k in np.flatnonzero(free)
        ]
        settled = np.flatnonzero(free)[np.array(least) > top - 1e-7]
        value[settled] = top
    assert value[:n] == pytest.approx(value[n:], abs=1e-6), "both players rate alike"
    return value[:n]


def test_deviation_ratings_are_gains_against_the_equilibrium() -> None:
    assert deviation_ratings(RPS.preferences.numpy()) == pytest.approx([0, 0, 0])
    assert deviation_ratings(CYCLE) == pytest.approx([0, 0, 0], abs=1e-6)
    equilibrium = np.array([1 / 3, 2 / 9, 4 / 9])
    assert deviation_ratings(FOUR)[3] == pytest.approx((FOUR[3, :3] - 0.5) @ equilibrium, abs=1e-6)
    strengths = np.array([2.0, 1.0, 0.0])
    transitive = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
    assert deviation_ratings(transitive) == pytest.approx(transitive[:, 0] - 0.5, abs=1e-6)


def test_copies_change_no_deviation_rating() -> None:
    places = [0, 0, 0, 1, 2, 3]
    assert deviation_ratings(FOUR[np.ix_(places, places)]) == pytest.approx(deviation_ratings(FOUR)[places], abs=1e-6)


def test_deviation_ratings_agree_with_the_joint_linear_programs() -> None:
    generator = np.random.default_rng(5)
    for _ in range(3):
        upper = np.triu(generator.random((4, 4)), 1)
        matrix = upper + np.tril(1 - upper.T, -1) + np.eye(4) / 2
        assert deviation_ratings(matrix) == pytest.approx(lexicographic(matrix), abs=1e-5)
    # Several equilibria: two players that are level, and two that lose to them by different margins.
    level = np.array([[0.5, 0.5, 0.6, 0.9], [0.5, 0.5, 0.8, 0.7], [0.4, 0.2, 0.5, 0.5], [0.1, 0.3, 0.5, 0.5]])
    assert deviation_ratings(level) == pytest.approx(lexicographic(level), abs=1e-5)


def test_alpha_rank_is_that_of_openspiel() -> None:
    """open_spiel 2.0.2: egt.alpharank.compute([W - 0.5], alpha=α, m=50)[2]."""
    for matrix, intensity, published in (
        (CYCLE, 1.0, [0.42929875, 0.25701587, 0.31368538]),
        (CYCLE, 10.0, [0.33713878, 0.33107493, 0.33178629]),
        (FOUR, 1.0, [4.29109437e-01, 2.56808614e-01, 3.13772881e-01, 3.09068534e-04]),
        (FOUR, 10.0, [3.37138782e-01, 3.31074933e-01, 3.31786286e-01, 0]),
    ):
        assert alpha_rank(matrix, intensity) == pytest.approx(published, abs=1e-8)
    assert alpha_rank(RPS.preferences.numpy()) == pytest.approx([1 / 3] * 3)
    assert alpha_rank(np.full((2, 2), 0.5)) == pytest.approx([0.5, 0.5])
    sure = np.array([[0.5, 1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.5]])
    assert alpha_rank(sure) == pytest.approx([1, 0, 0])


def test_exploitability_is_half_of_the_nash_conv_of_openspiel() -> None:
    """open_spiel 2.0.2: algorithms.exploitability.nash_conv on the matrix game of W - 0.5, turn-based."""
    for policy, published in (([1 / 3, 1 / 3, 1 / 3], 0.13333333333333336), ([0.5, 0.3, 0.2], 0.16)):
        assert 2 * exploitability(CYC, torch.tensor(policy).double()) == pytest.approx(published)
    assert exploitability(CYC, nash_equilibrium(CYC)) == pytest.approx(0, abs=1e-7)
    assert nash_equilibrium(CYC).tolist() == pytest.approx([1 / 3, 2 / 9, 4 / 9], abs=1e-7)  # its NashConv is 6e-17
