"""Abilities of judges: planted ones, another optimiser, and judges who are undecided or prefer the worse player."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, xlogy

from alignrun.errors import RunError
from alignrun.evaluation.abilities import abilities, fit, scaled
from alignrun.evaluation.standings import ELO, elo

STRENGTHS = np.array([1.2, 0.3, -0.4, -1.1])
ABILITIES = np.array([1.8, 1.2, 0.8, 0.2])
"""With a mean of 1."""


def expected(abilities: np.ndarray, strengths: np.ndarray = STRENGTHS) -> np.ndarray:
    return expit(abilities[:, None, None] * (strengths[:, None] - strengths))


def votes(rates: np.ndarray, prompts: int, seed: int) -> np.ndarray:
    """[X, M, n, n] one vote of each judge on each pair and prompt."""
    drawn = np.random.default_rng(seed).random((prompts, *rates.shape)) < rates
    upper = np.triu(drawn, 1).astype(float)
    return upper + np.tril(1 - upper.swapaxes(-1, -2), -1) + np.eye(rates.shape[-1]) / 2


def log_likelihood(theta: np.ndarray, strengths: np.ndarray, wins: np.ndarray) -> float:
    rates = expected(theta, strengths)
    rows, columns = np.triu_indices(len(strengths), 1)
    w, p = wins[:, rows, columns], rates[:, rows, columns]
    return float((xlogy(w, p) + xlogy(1 - w, 1 - p)).clip(-1e3).sum())


@pytest.mark.parametrize(
    "theta", [ABILITIES, np.array([2.2, 1.6, 1.1, -0.9]), np.array([1.5, 1.5, 0.0]), np.array([3.0, 2.0, -2.0])]
)
def test_exact_probabilities_give_back_what_was_planted(theta: np.ndarray) -> None:
    found = scaled(fit(expected(theta)), len(theta), anchor=2)
    assert found[: len(theta)] == pytest.approx(theta, abs=1e-6)
    assert found[len(theta) :] == pytest.approx(ELO * (STRENGTHS - STRENGTHS[2]), abs=1e-4)


def test_votes_give_back_what_was_planted_within_their_intervals() -> None:
    truth = np.concatenate([ABILITIES, ELO * (STRENGTHS - STRENGTHS[3])])
    found = abilities(votes(expected(ABILITIES), 400, seed=1), 3, 0.999)
    assert found is not None
    estimates = [*found[0], *found[1]]
    assert all(one.low <= true <= one.high for one, true in zip(estimates, truth, strict=True))
    assert [one.value for one in found[0]] == pytest.approx(ABILITIES, abs=0.15)
    assert np.mean([one.value for one in found[0]]) == pytest.approx(1)
    assert found[1][3].value == found[1][3].low == found[1][3].high == 0


def test_another_optimiser_finds_the_same_maximum_from_anywhere() -> None:
    """BFGS on the paper's form, abilities that sum to 1, from random points."""
    generator = np.random.default_rng(3)
    for _ in range(5):
        wins = np.clip(expected(generator.normal(1, 1, 3), generator.normal(0, 1, 4)), 0.02, 0.98)
        noise = np.triu(generator.uniform(-0.2, 0.2, wins.shape), 1)
        wins = np.clip(wins + noise - noise.swapaxes(1, 2), 0.01, 0.99)
        wins = (wins + 1 - wins.swapaxes(1, 2)) / 2
        best = max(
            -minimize(
                lambda x, wins=wins: -log_likelihood(x[:3] / x[:3].sum(), x[3:], wins),
                generator.normal(0, 1, 7) + 0.5,
                method="L-BFGS-B",
            ).fun
            for _ in range(8)
        )
        point = fit(wins)
        assert log_likelihood(point[:3], point[3:], wins) == pytest.approx(best, abs=1e-6)


def test_the_maximum_is_stationary_and_its_scale_is_free() -> None:
    wins = votes(expected(ABILITIES), 50, seed=2).mean(0) * 0.98 + 0.01
    point = fit(wins)
    theta, strengths = point[:4], point[4:]
    here = log_likelihood(theta, strengths, wins)
    for factor in (0.5, 3.0, -1.0):
        assert log_likelihood(theta * factor, strengths / factor, wins) == pytest.approx(here, abs=1e-12)
        moved = np.concatenate([theta * factor, strengths / factor + 7])
        assert scaled(moved, 4, 0) == pytest.approx(scaled(point, 4, 0))
        assert scaled(fit(wins, moved), 4, 0) == pytest.approx(scaled(point, 4, 0), abs=1e-5)
    errors = wins - expected(theta, strengths)
    apart = strengths[:, None] - strengths
    assert (errors * apart).sum((1, 2)) == pytest.approx(np.zeros(4), abs=1e-6), "∂/∂θ_k"
    assert np.einsum("k,kij->i", theta, errors) == pytest.approx(np.zeros(4), abs=1e-6), "∂/∂R_i"


def test_one_judge_has_the_ratings_of_elo() -> None:
    rates = votes(expected(np.ones(1)), 40, seed=4)
    found = abilities(rates, 1, 0.95)
    assert found is not None
    assert found[0][0].value == pytest.approx(1)
    assert [one.value for one in found[1]] == pytest.approx(elo(rates[:, 0].mean(0), 1, 40), abs=1e-4)


def test_a_judge_of_coin_tosses_has_no_ability_and_an_adversary_a_negative_one() -> None:
    even = expected(np.array([1.0, 1.0, 0.0]))
    found = abilities(np.broadcast_to(even, (10, *even.shape)), None, 0.95)
    assert found is not None
    assert found[0][2].value == pytest.approx(0, abs=1e-6)
    assert sum(one.value for one in found[1]) == pytest.approx(0, abs=1e-6)
    against = abilities(votes(expected(np.array([1.5, 1.5, -1.0])), 200, seed=5), None, 0.95)
    assert against is not None
    assert against[0][2].high < 0 < against[0][0].low
    assert [one.value for one in against[1]] == sorted((one.value for one in against[1]), reverse=True)


def test_undecided_or_opposed_judges_have_no_abilities() -> None:
    assert abilities(np.full((5, 2, 3, 3), 0.5), None, 0.95) is None
    opposed = expected(np.array([1.0, -1.0]))
    assert abilities(np.broadcast_to(opposed, (5, *opposed.shape)), None, 0.95) is None


def test_a_judge_that_always_decides_alike_has_a_finite_ability() -> None:
    sure = np.triu(np.ones((3, 3)), 1) + np.eye(3) / 2
    mild = np.where(sure == 1, 0.7, np.where(sure == 0, 0.3, 0.5))
    found = abilities(np.broadcast_to(np.stack([sure, mild]), (20, 2, 3, 3)), 2, 0.95)
    assert found is not None
    assert np.isfinite([one.value for one in (*found[0], *found[1])]).all()
    assert found[0][0].value > 1 > found[0][1].value > 0


def test_members_who_nearly_cancel_have_no_abilities() -> None:
    """The mean ability, which is the scale of the others, may then have either sign."""
    noisy = votes(expected(np.array([1.0, -0.98])), 100, seed=2)
    assert abilities(noisy, None, 0.95) is None
    assert abilities(votes(expected(np.array([1.0, 0.98])), 100, seed=2), None, 0.95) is not None


def test_a_likelihood_without_a_maximum_loses_no_tournament(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> np.ndarray:
        raise RunError("abilities: no maximum of the likelihood")

    monkeypatch.setattr("alignrun.evaluation.abilities.fit", fails)
    assert abilities(votes(expected(ABILITIES), 5, seed=1), None, 0.95) is None
