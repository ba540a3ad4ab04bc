"""Standings against closed forms, independent solvers, and tables whose truth is known."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax, xlog1py, xlogy

from alignrun import games
from alignrun.errors import InputError, RunError
from alignrun.evaluation import bootstrap, standings
from alignrun.evaluation.bootstrap import Array, bootstrap_estimates
from alignrun.evaluation.intervals import mean_interval
from alignrun.evaluation.results import Estimate

pytestmark = pytest.mark.filterwarnings("error")

CYC = games.CYC.preferences.numpy()
HALF = Estimate(0.5, 0.5, 0.5)


def antisymmetric(upper: Array) -> Array:
    """[…, n, n] win rates from those above the diagonal."""
    above = np.triu(upper, 1)
    below = np.tril(1 - np.swapaxes(above, -1, -2), -1)
    return above + below + np.eye(upper.shape[-1]) / 2


def random_table(seed: int, prompts: int = 12, players: int = 3, samples: int = 4) -> Array:
    rng, size = np.random.default_rng(seed), players * samples
    return antisymmetric(rng.random((prompts, size, size))).reshape(prompts, *(players, samples) * 2)


def judged(seed: int, strengths: Array, prompts: int, samples: int = 3, hard: bool = False) -> Array:
    """A Bradley-Terry judge of completions whose quality varies from prompt to prompt and from sample to sample."""
    rng, players = np.random.default_rng(seed), len(strengths)
    quality = strengths[:, None] + rng.normal(size=(prompts, players, 1)) + rng.normal(size=(prompts, players, samples))
    flat = quality.reshape(prompts, -1)
    table = expit(flat[:, :, None] - flat[:, None])
    if hard:
        table = antisymmetric((rng.random(table.shape) < table).astype(float))
    return table.reshape(prompts, *(players, samples) * 2)


def judged_truth(strengths: Array) -> Array:
    """The win rates of `judged`: σ(s_i − s_j + z) with z ~ N(0, 4), by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    wins = expit(strengths[:, None, None] - strengths[None, :, None] + 2 * nodes)
    return np.asarray(wins @ weights / weights.sum())


# Win rates


def test_win_rates_are_means_over_the_pairs_asked() -> None:
    table = random_table(0)
    table[3, 0, 1, 2, 3] = table[3, 2, 3, 0, 1] = np.nan
    rates = standings.prompt_win_rates(table)
    for x, i, j in np.ndindex(rates.shape):
        pairs = [table[x, i, k, j, m] for k in range(4) for m in range(4)]
        assert rates[x, i, j] == pytest.approx(0.5 if i == j else np.nanmean(pairs))


def test_matched_pairs() -> None:
    table, matched = random_table(1), np.full((12, 3, 4, 3, 4), np.nan)
    k = np.arange(4)
    matched[:, :, k, :, k] = table[:, :, k, :, k]
    rates = standings.prompt_win_rates(matched)
    assert rates[5, 0, 2] == pytest.approx(np.mean([table[5, 0, k, 2, k] for k in range(4)]))
    assert (rates[:, [0, 1, 2], [0, 1, 2]] == 0.5).all()
    standings.ratings(rates, 0, 0.95)


def test_every_prompt_weighs_the_same_however_many_pairs_were_asked() -> None:
    table = np.full((2, 2, 3, 2, 3), 0.5)
    table[:, 0, :, 1], table[:, 1, :, 0] = 1, 0
    table[1, 0, :, 1], table[1, 1, :, 0] = np.nan, np.nan
    table[1, 0, 0, 1, 0], table[1, 1, 0, 0, 0] = 0, 1
    assert standings.win_matrix(standings.prompt_win_rates(table), 0.95)[0][1].value == 0.5


def test_cells_have_the_intervals_of_means_over_prompts_and_mirror_each_other() -> None:
    rates = standings.prompt_win_rates(random_table(2))
    matrix = standings.win_matrix(rates, 0.9, seed=4)
    for i, j in np.ndindex(3, 3):
        cell, mirrored = matrix[i][j], matrix[j][i]
        assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx(
            (1 - cell.value, 1 - cell.high, 1 - cell.low), abs=1e-12
        )
        low, high = mean_interval(rates[:, i, j].tolist(), 0.9, seed=4, limits=(0, 1)) if i != j else (0.5, 0.5)
        assert (cell.value, cell.low, cell.high) == pytest.approx((rates[:, i, j].mean(), low, high), abs=1e-9)
        assert cell == HALF or i != j


def test_averages_leave_out_the_player_itself() -> None:
    rates = standings.prompt_win_rates(random_table(3))
    averages, matrix = standings.averages(rates, 0.95), standings.win_matrix(rates, 0.95)
    assert averages[0].value == pytest.approx((matrix[0][1].value + matrix[0][2].value) / 2)
    first, second = standings.averages(rates[:, :2, :2], 0.95)
    one = standings.win_matrix(rates[:, :2, :2], 0.95)[0][1]
    assert [first.low, first.value, first.high] == pytest.approx([one.low, one.value, one.high])
    assert [second.low, second.value, second.high] == pytest.approx([1 - one.high, 1 - one.value, 1 - one.low])


# Equilibrium


def evenest(matrix: Array) -> Array:
    """The equilibrium of maximum entropy from the other side: p ∝ exp(−Eᵀλ) that minimises log Σ exp(−Eᵀλ), λ ≥ 0."""
    edges = (matrix - matrix.T) / 2
    dual = minimize(
        lambda force: (logsumexp(-force @ edges), -edges @ softmax(-force @ edges)),
        np.zeros(len(matrix)),
        jac=True,
        bounds=[(0, None)] * len(matrix),
        method="L-BFGS-B",
        options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-16, "gtol": 1e-11},
    )
    return np.asarray(softmax(-dual.x @ edges))


@pytest.mark.parametrize("levels", [1, 2, 8, 0], ids=["deterministic", "halves", "eighths", "generic"])
def test_equilibrium_of_random_games_is_the_one_of_maximum_entropy(levels: int) -> None:
    rng, several = np.random.default_rng(levels), 0
    for _ in range(40):
        n = int(rng.integers(2, 21))
        upper = rng.random((n, n))
        matrix = antisymmetric((upper * levels).round() / levels if levels else upper)
        if levels == 8:
            copies = rng.integers(0, max(1, n // 2), n)
            matrix = matrix[np.ix_(copies, copies)]
        share, value = standings.nash_average(matrix)
        assert share.sum() == pytest.approx(1)
        assert share.min() >= 0
        assert (matrix @ share).max() <= 0.5 + 1e-9
        assert value == pytest.approx(0.5)
        assert share == pytest.approx(evenest(matrix), abs=1e-5)
        several += not np.allclose(share, games.largest_equilibrium(matrix), atol=1e-3)
    assert several > 0 or levels in (0, 1), "some of these games must have several equilibria"


@pytest.mark.parametrize(
    ("matrix", "share"),
    [
        (CYC, [1 / 3, 2 / 9, 4 / 9]),
        (games.RPS.preferences.numpy(), [1 / 3] * 3),
        (games.DICE.preferences.numpy(), [1 / 3] * 3),
        (np.full((7, 7), 0.5), [1 / 7] * 7),
        (np.full((7, 7), 0.5) + 1e-16 * np.arange(49).reshape(7, 7), [1 / 7] * 7),
        (antisymmetric(np.full((5, 5), 0.6)), [1, 0, 0, 0, 0]),
        (CYC[np.ix_([0, 0, 1, 2], [0, 0, 1, 2])], [1 / 6, 1 / 6, 2 / 9, 4 / 9]),
        (antisymmetric(np.array([[0, 0.5, 0.9], [0, 0, 0.6], [0, 0, 0]])), [0.5, 0.5, 0]),
        (antisymmetric(np.array([[0, 1 / 3 + 0.05, 2 / 3 + 0.025], [0, 0, 1 / 3 - 0.025], [0] * 3])), None),
    ],
    ids=["cyc", "rps", "dice", "ties", "rounding", "dominant", "clones", "two best", "reward model"],
)
def test_known_equilibria(matrix: Array, share: list[float] | None) -> None:
    expected = share or [0.383333, 0.383333, 0.233333]  # arXiv 2312.00886 §3.2 at ε = 0.1
    assert standings.nash_average(matrix)[0] == pytest.approx(expected, abs=1e-6)


def test_a_constraint_from_outside_the_support_limits_how_even_an_equilibrium_can_be() -> None:
    # The first two tie; the third has 0.4 against the first and 0.8 against the second, and is in no equilibrium.
    matrix = antisymmetric(np.array([[0, 0.5, 0.6], [0, 0, 0.2], [0, 0, 0]]))
    assert standings.nash_average(matrix)[0] == pytest.approx([0.75, 0.25, 0], abs=1e-6)


def test_equilibrium_does_without_the_largest_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = CYC[np.ix_([0, 0, 1, 2], [0, 0, 1, 2])]

    class Failure:
        x = np.full(2, np.nan)

    monkeypatch.setattr(standings, "minimize", lambda *_, **__: Failure)
    share, _ = standings.nash_average(matrix)
    assert [share[:2].sum(), *share[2:]] == pytest.approx([1 / 3, 2 / 9, 4 / 9])


def test_shares_of_a_cycle() -> None:
    shares = standings.shares(np.broadcast_to(CYC, (1, 3, 3)), 0.95)
    assert [share.value for share in shares] == pytest.approx([1 / 3, 2 / 9, 4 / 9])
    assert all((share.low, share.high) == (0, 1) for share in shares), "one prompt settles nothing"


# Ratings


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_elo_of_two_players(rate: float) -> None:
    smoothed = (20 * rate + 0.5) / 21
    first, second = standings.elo(np.array([[0.5, rate], [1 - rate, 0.5]]), 1, 20)
    assert (first, second) == pytest.approx((400 * np.log10(smoothed / (1 - smoothed)), 0))


@pytest.mark.parametrize("seed", range(5))
def test_elo_maximises_the_likelihood(seed: int) -> None:
    matrix = antisymmetric(np.random.default_rng(seed).random((6, 6)).round(seed % 2))
    wins = (5 * matrix + 0.5) / 6

    def loss(strength: Array) -> float:
        chance = expit(strength[:, None] - strength)
        return float(-(xlogy(wins, chance) + xlog1py(1 - wins, -chance)).sum())

    best = minimize(loss, np.zeros(6), options={"gtol": 1e-9}).x
    expected = 400 / np.log(10) * (best - best[2])
    assert standings.elo(matrix, 2, 5) == pytest.approx(expected, abs=0.01)


def test_ratings_that_fit_and_ratings_that_cannot() -> None:
    strengths = np.array([0, np.log(9), np.log(2)])
    matrix = expit(strengths[:, None] - strengths)
    rating = standings.elo(matrix, 0, 10**12)
    assert rating == pytest.approx([0, 400 * np.log10(9), 400 * np.log10(2)], abs=1e-6)
    assert standings.misfit(matrix, rating) == pytest.approx(0, abs=1e-9)
    cycle = standings.elo(CYC, 0, 10**12)
    assert cycle == pytest.approx([0, *[-0.405465 * 400 / np.log(10)] * 2], abs=1e-3)
    assert standings.misfit(CYC, cycle) == pytest.approx(0.3, abs=1e-6)
    rps = games.RPS.preferences.numpy()
    assert standings.misfit(rps, standings.elo(rps, 0, 100)) == pytest.approx(0.5)


def test_elo_of_many_matrices_at_once_and_of_extremes() -> None:
    matrices = antisymmetric(np.random.default_rng(0).random((20, 8, 8)).round())
    together = standings.elo(matrices, 3, 100_000)
    assert np.isfinite(together).all()
    assert together == pytest.approx(np.stack([standings.elo(matrix, 3, 100_000) for matrix in matrices]), abs=1e-6)
    order = standings.elo(antisymmetric(np.ones((20, 20))), 19, 1000)
    assert all(better > worse for better, worse in pairwise(order))


def test_elo_says_when_it_has_not_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standings, "NEWTON_STEPS", 2)
    with pytest.raises(RunError, match="after 2 steps"):
        standings.elo(CYC, 0, 100)


# Cycles


def with_margin(matrix: Array, margin: float) -> list[list[Estimate]]:
    return [[Estimate(p, p - margin, p + margin) for p in row] for row in matrix]


def test_cycles_are_named_once_and_only_where_every_interval_is_above_one_half() -> None:
    assert standings.cycles(with_margin(CYC, 0.1), "abc") == (("a", "b", "c"),)
    assert standings.cycles(with_margin(CYC, 0.2), "abc") == ()
    assert standings.cycles(with_margin(CYC.T, 0.1), "abc") == (("a", "c", "b"),)
    assert standings.cycles(with_margin(antisymmetric(np.ones((5, 5))), 0.1), "abcde") == ()


def test_cycles_are_as_many_as_there_are_in_a_deterministic_tournament() -> None:
    for seed in range(10):
        matrix = antisymmetric(np.random.default_rng(seed).random((7, 7)).round())
        found = standings.cycles(with_margin(matrix, 0), "abcdefg")
        wins = matrix.sum(1) - 0.5
        assert len(found) == 35 - (wins * (wins - 1) / 2).sum()  # Kendall and Babington Smith 1940
        assert len({frozenset(cycle) for cycle in found}) == len(found)


# All together


def everything(table: Array, anchor: int) -> list[list[tuple[float, float, float]]]:
    rates = standings.prompt_win_rates(table)
    rows = [*standings.win_matrix(rates, 0.95), standings.averages(rates, 0.95)]
    rows += [standings.shares(rates, 0.95), standings.ratings(rates, anchor, 0.95)]
    return [[(cell.value, cell.low, cell.high) for cell in row] for row in rows]


@pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0)])
def test_the_order_of_the_players_plays_no_part(order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standings, "SHARE_DRAWS", 50)
    table, at = random_table(4), np.array(order)
    first = np.array(everything(table, 1))
    second = np.array(everything(table[:, at][:, :, :, at], order.index(1)))
    assert second[:3] == pytest.approx(first[:3][np.ix_(at, at)], abs=1e-9)
    assert second[3:] == pytest.approx(first[3:][:, at], abs=1e-6)


def test_a_judge_without_opinions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standings, "SHARE_DRAWS", 50)
    *matrix, averages, shares, ratings = everything(np.full((20, 4, 3, 4, 3), 0.5), 2)
    unseen = (1 - 0.025 ** (1 / 20)) / 2  # twenty prompts alike do not speak for all (Clopper and Pearson)
    for place, row in enumerate([*matrix, averages]):
        for column, cell in enumerate(row):
            assert cell == pytest.approx((0.5, 0.5, 0.5) if place == column else (0.5, 0.5 - unseen, 0.5 + unseen))
    assert np.array(shares) == pytest.approx(0.25)
    assert np.array(ratings) == pytest.approx(0)


def test_a_single_prompt_has_nothing_to_resample() -> None:
    *matrix, averages, shares, ratings = everything(random_table(5, prompts=1), 0)
    for place, row in enumerate([*matrix, averages, shares]):
        for column, (value, low, high) in enumerate(row):
            assert (low, high) == (0, 1) or (place == column < 3 and value == low == high == 0.5)
    assert all(value == low == high for value, low, high in ratings), "nothing bounds a rating"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table: table[:, :2], r"must be \[X, n, K, n, K\]"),
        (lambda table: table[:, :1, :, :1], "n ≥ 2"),
        (lambda table: table[:0], r"not \[0, 3, 4, 3, 4\]"),
        (lambda table: table**2, "sum to 1"),
        (lambda table: np.where(np.arange(3)[:, None] > 1, np.nan, table), "both be there"),
    ],
)
def test_what_is_no_table_is_refused(change: object, problem: str) -> None:
    assert callable(change)
    with pytest.raises(InputError, match=problem):
        standings.prompt_win_rates(change(random_table(0)))


def test_players_never_compared_are_named() -> None:
    table = random_table(0)
    table[7, 0, :, 2] = table[7, 2, :, 0] = np.nan
    with pytest.raises(InputError, match="players 0 and 2 were not compared for prompt 7"):
        standings.prompt_win_rates(table)


# Coverage


def test_coverage_is_nominal_over_prompts_and_too_low_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)
    strengths, prompts, simulations = np.array([0, 0.5, 1]), 40, 300
    truth, hits, pairs = judged_truth(strengths), np.zeros((3, 3)), 0
    elo, average = standings.elo(truth, 0, prompts), (truth.sum(1) - 0.5) / 2
    for seed in range(simulations):
        table = judged(seed, strengths, prompts, hard=seed % 2 == 0)
        rates = standings.prompt_win_rates(table)
        cells = [standings.win_matrix(rates, 0.95, seed)[i][j] for i, j in ((0, 1), (0, 2), (1, 2))]
        for row, (estimates, expected) in enumerate(
            [
                (cells, truth[[0, 0, 1], [1, 2, 2]]),
                (standings.averages(rates, 0.95, seed), average),
                (standings.ratings(rates, 0, 0.95, seed), elo),
            ]
        ):
            hits[row] += [e.low <= t <= e.high for e, t in zip(estimates, expected, strict=True)]
        (naive,) = bootstrap_estimates(table[:, 0, :, 1].reshape(-1, 1), 0.95, seed)
        pairs += naive.low <= truth[0, 1] <= naive.high
    error = np.sqrt(0.95 * 0.05 / simulations)
    assert hits[2, 0] == simulations, "the anchor is at 0"
    assert np.abs(np.delete(hits.ravel(), 6) / simulations - 0.95).max() < 3.5 * error
    assert pairs / simulations < 0.95 - 8 * error


def test_coverage_of_shares_where_the_support_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standings, "SHARE_DRAWS", 60)
    rng, hits, simulations = np.random.default_rng(0), np.zeros(3), 50
    for seed in range(simulations):
        rates = antisymmetric(rng.beta(4 * CYC, 4 * CYC.T, (100, 3, 3)))
        shares = standings.shares(rates, 0.9, seed)
        hits += [e.low <= t <= e.high for e, t in zip(shares, (1 / 3, 2 / 9, 4 / 9), strict=True)]
    assert np.abs(hits / simulations - 0.9).max() < 3.5 * np.sqrt(0.9 * 0.1 / simulations)
