"""Bounds against what they bound: exactly, by enumerating all that could be sampled, and by simulation."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch

from alignrun import games
from alignrun.errors import InputError
from alignrun.evaluation import best_of_n, bootstrap
from alignrun.evaluation.best_of_n import Array, best_response_bound, regularised_bound
from alignrun.evaluation.results import Bound, Estimate

pytestmark = pytest.mark.filterwarnings("error")

KL_TAU = 0.1
TICKETS = {
    "uniform": [0, 1, 2],
    "skewed": [0, 0, 1, 2],
    "two": [1, 1, 2],
    "sure": [2],
    "reference": [0, 0, 0, 0, 0, 1, 1, 1, 2, 2],
}
"""Policies as actions of which one is drawn; the last is the reference of CYC."""


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)


def random_preferences(seed: int, actions: int = 3) -> Array:
    upper = np.triu(np.random.default_rng(seed).random((actions, actions)).round(2), 1)
    return upper + np.tril(1 - upper.T, -1) + np.eye(actions) / 2


GAMES = {name: game.preferences.numpy() for name, game in games.GAMES.items()}
GAMES |= {f"random {seed}": random_preferences(seed) for seed in range(3)}


def distribution(tickets: Sequence[int]) -> Array:
    return np.bincount(tickets, minlength=3) / len(tickets)


def table_of(preferences: Array, actions: Array) -> Array:
    """[X, n, K, n, K] for actions [X, n, K] in one game or in one game a prompt."""
    per_prompt = np.broadcast_to(preferences, (len(actions), *preferences.shape[-2:]))
    x = np.arange(len(actions))[:, None, None, None, None]
    return np.asarray(per_prompt[x, actions[:, :, :, None, None], actions[:, None, None]])


def enumerated(players: Sequence[Sequence[int]], samples: int) -> Array:
    """Actions [X, n, K]: one prompt for each of the equally likely things that the players could have sampled."""
    drawn = product(*[tickets for tickets in players for _ in range(samples)])
    return np.array(list(drawn)).reshape(-1, len(players), samples)


def sampled(seed: int, players: Sequence[Array], prompts: int, samples: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(len(p), size=(prompts, samples), p=p) for p in players], axis=1)


def exploitability(preferences: Array, policy: Array) -> float:
    return float((preferences @ policy).max() - 0.5)


def half_gap(preferences: Array, policy: Array, reference: Array) -> float:
    tensors = [torch.tensor(array) for array in (preferences, reference, policy)]
    return float(games.duality_gap(games.Game(tensors[0], tensors[1], ("a", "b", "c")), tensors[2], KL_TAU)) / 2


def log_ratio(actions: Array, policy: Array, reference: Array) -> Array:
    return np.log(np.where(policy > 0, policy, 1) / reference)[actions]


def error_of(gain: Estimate) -> float:
    return (gain.high - gain.low) / (2 * 1.96)


# The estimators, by another implementation


def by_hand(table: Array, target: int, proposers: Sequence[int], count: int, soft: Array | None = None) -> Array:
    """Both bounds in plain loops, [X]; `soft` is τ·mean log π/μ."""
    values = []
    samples = table.shape[2]
    folds = min(samples, 5)
    for x, rates in enumerate(table):
        value = 0.0
        for k in range(samples):
            others = [j for j in range(samples) if j % folds != k % folds]
            found = []
            for player in proposers:
                usable = others if player == target else range(samples)
                for j in list(usable)[:count]:
                    found.append((np.mean([rates[player, j, target, o] for o in others]), rates[player, j, target, k]))
            scores, judged = (np.array(column) for column in zip(*found, strict=True))
            if soft is None:
                best = np.isclose(scores, scores.max(), atol=1e-12)
                value += judged[best].mean() - 0.5 if scores.max() > 0.5 else 0.0
            else:
                weights = np.exp(scores / KL_TAU) / np.exp(scores / KL_TAU).sum()
                cost = sum(w * np.log(len(weights) * w) for w in weights)
                value += weights @ judged - KL_TAU * cost + soft[x] - 0.5
        values.append(value / samples)
    return np.array(values)


def random_table(seed: int, prompts: int, players: int, samples: int) -> Array:
    size = players * samples
    tables = [random_preferences(seed + x, size) for x in range(prompts)]
    return np.stack(tables).reshape(prompts, *(players, samples) * 2)


@pytest.mark.parametrize(("samples", "counts"), [(2, (1, 2)), (3, (1, 2, 3)), (7, (1, 2, 4, 7)), (8, (1, 2, 4, 8))])
@pytest.mark.parametrize("proposers", [None, (0,), (1,), (2, 1)])
def test_bounds_are_those_of_plain_loops(
    samples: int, counts: tuple[int, ...], proposers: tuple[int, ...] | None
) -> None:
    table = random_table(samples, 9, 3, samples)
    among = (0, 1, 2) if proposers is None else proposers
    bound = best_response_bound(table, 1, proposers, 0.95)
    expected = [(n * len(among), by_hand(table, 1, among, n).mean()) for n in counts]
    assert [n for n, _ in bound.curve] == [n for n, _ in expected]
    assert [gain for _, gain in bound.curve] == pytest.approx([gain for _, gain in expected])
    assert (bound.proposals, bound.gain.value) == bound.curve[-1]
    assert bound.gain.low <= bound.gain.value <= bound.gain.high

    ratios = np.random.default_rng(0).normal(size=(9, samples))
    for reference in (0, 1):
        soft = KL_TAU * ratios.mean(1)
        bound = regularised_bound(table, 1, reference, ratios, KL_TAU, 0.95)
        expected = [(n, by_hand(table, 1, [reference], n, soft).mean()) for n in counts]
        assert [n for n, _ in bound.curve] == [n for n, _ in expected]
        assert [gain for _, gain in bound.curve] == pytest.approx([gain for _, gain in expected])
        assert (bound.proposals, bound.gain.value) == bound.curve[-1]


# Exactly below what they bound


@pytest.mark.parametrize("policy", TICKETS)
@pytest.mark.parametrize("game", GAMES)
def test_expectations_of_the_best_response_lie_below_the_exploitability(game: str, policy: str) -> None:
    preferences, tickets = GAMES[game], TICKETS[policy][:4]
    exact = exploitability(preferences, distribution(tickets))
    actions = enumerated([tickets, [0, 1, 2]], 2)
    for proposers in (None, [0], [1]):
        bound = best_response_bound(table_of(preferences, actions), 0, proposers, 0.95)
        assert all(gain <= exact + 1e-12 for _, gain in bound.curve)
    alone = best_response_bound(table_of(preferences, np.repeat(enumerated([tickets], 4), 2, 1)), 0, [0], 0.95)
    assert all(gain <= exact + 1e-12 for _, gain in alone.curve)


@pytest.mark.parametrize("policy", TICKETS)
@pytest.mark.parametrize("game", GAMES)
def test_expectations_of_the_soft_response_lie_below_half_the_gap(game: str, policy: str) -> None:
    preferences, tickets, reference_tickets = GAMES[game], TICKETS[policy][:4], [0, 1, 1, 2]
    target, reference = distribution(tickets), distribution(reference_tickets)
    exact = half_gap(preferences, target, reference)
    actions = enumerated([tickets, reference_tickets], 2)
    ratios = log_ratio(actions[:, 0], target, reference)
    bound = regularised_bound(table_of(preferences, actions), 0, 1, ratios, KL_TAU, 0.95)
    assert all(gain <= exact + 1e-12 for _, gain in bound.curve)
    own = np.repeat(enumerated([tickets], 4), 2, axis=1)
    bound = regularised_bound(table_of(preferences, own), 0, 0, np.zeros((len(own), 4)), KL_TAU, 0.95)
    if (target > 0).all():
        exact = half_gap(preferences, target, target)
        assert all(gain <= exact + 1e-12 for _, gain in bound.curve)


def bounds_of_the_reference(actions: Array) -> tuple[Bound, Bound]:
    table = table_of(GAMES["rps"], actions)
    return best_response_bound(table, 0, None, 0.95), regularised_bound(
        table, 0, 1, np.zeros(actions.shape[::2]), KL_TAU, 0.95
    )


def test_without_folds_the_expectations_lie_above(monkeypatch: pytest.MonkeyPatch) -> None:
    actions = enumerated([[0, 1, 2], [0, 1, 2]], 3)  # at the equilibrium, where nothing can be gained
    best, soft = bounds_of_the_reference(actions)
    assert best.gain.value <= 1e-12
    assert soft.gain.value <= 1e-12

    def uncrossed(wins: Array, *_: object) -> list[tuple[float, Array, Array]]:
        rates = wins.reshape(len(wins), -1, wins.shape[-1]).mean(-1)
        return [(1.0, rates, rates)]

    monkeypatch.setattr(best_of_n, "_folds", uncrossed)
    best, soft = bounds_of_the_reference(actions)
    assert best.gain.value > 0.2
    assert soft.gain.value > 0.1


def bounds_of_a_policy_on_its_own(preferences: Array, tickets: Sequence[int]) -> tuple[float, float]:
    two, four = (table_of(preferences, np.repeat(enumerated([tickets], samples), 2, axis=1)) for samples in (2, 4))
    soft = regularised_bound(two, 0, 0, np.zeros((len(two), 2)), KL_TAU, 0.95)
    return best_response_bound(four, 0, [0], 0.95).gain.value, soft.gain.value


def test_with_proposals_from_the_fold_that_judges_them_the_expectations_lie_above(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A sample has ½ against itself, which may be more than it deserves.
    preferences = np.array([[0.5, 0.93, 0.27], [0.07, 0.5, 0.72], [0.73, 0.28, 0.5]])
    tickets = [0, 1, 2, 2]
    policy = distribution(tickets)
    exact = exploitability(preferences, policy), half_gap(preferences, policy, policy)
    best, soft = bounds_of_a_policy_on_its_own(preferences, tickets)
    assert best <= exact[0]
    assert soft <= exact[1]
    folds = best_of_n._folds
    monkeypatch.setattr(best_of_n, "_folds", lambda wins, own, count: folds(wins, np.zeros_like(own), count))
    best, soft = bounds_of_a_policy_on_its_own(preferences, tickets)
    assert best > exact[0]
    assert soft > exact[1]


# How near they come


@pytest.mark.parametrize("game", ["cyc", "rps", "random 1"])
@pytest.mark.parametrize("policy", ["uniform", "reference", "skewed"])
def test_bounds_approach_the_exact_values_from_below(game: str, policy: str) -> None:
    preferences, target = GAMES[game], distribution(TICKETS[policy])
    reference = games.CYC.reference.numpy()
    exact = exploitability(preferences, target), half_gap(preferences, target, reference)
    last = -np.inf, -np.inf
    for samples, prompts in ((2, 2000), (8, 1000), (64, 150)):
        actions = sampled(samples, [target, reference], prompts, samples)
        table, ratios = table_of(preferences, actions), log_ratio(actions[:, 0], target, reference)
        bounds = (
            best_response_bound(table, 0, None, 0.95),
            regularised_bound(table, 0, 1, ratios, KL_TAU, 0.95),
        )
        for bound, limit, before in zip(bounds, exact, last, strict=True):
            slack = 4 * error_of(bound.gain)
            assert before - slack < bound.gain.value < limit + slack
        last = bounds[0].gain.value, bounds[1].gain.value
    assert last == pytest.approx(exact, abs=0.035)


def test_values_that_are_known() -> None:
    mu, uniform = games.CYC.reference.numpy(), np.full(3, 1 / 3)
    for policy, exploited, gap in ((mu, 0.08, 0.06840333), (uniform, 0.0666667, 0.07140430)):
        assert exploitability(GAMES["cyc"], policy) == pytest.approx(exploited)
        assert half_gap(GAMES["cyc"], policy, mu) == pytest.approx(gap / 2)
    # A judge that always prefers b to a, against a policy that always says a: nothing is left to chance.
    table = table_of(np.array([[0.5, 0.0], [1.0, 0.5]]), np.broadcast_to([[0] * 4, [1] * 4], (6, 2, 4)))
    unseen = 1 - 0.025 ** (1 / 6)  # of prompts may be unlike the six that are all alike (Clopper and Pearson)
    first, second = (best_response_bound(table, target, None, 0.95).gain for target in (0, 1))
    assert (first.low, first.value, first.high) == pytest.approx((0.5 - unseen, 0.5, 0.5))
    assert (second.low, second.value, second.high) == pytest.approx((-unseen / 2, 0, unseen / 2))
    soft = regularised_bound(table, 0, 1, np.full((6, 4), 3.0), KL_TAU, 0.95)
    assert soft.gain.value == pytest.approx(1 - 0.5 + KL_TAU * 3)


def test_every_prompt_is_a_game_of_its_own() -> None:
    # The best action is another one for every prompt: one that fits all of them would gain nothing.
    rps, prompts = GAMES["rps"], 900
    preferences = np.stack([rps[np.ix_(turn, turn)] for turn in ([0, 1, 2], [1, 2, 0], [0, 2, 1])] * (prompts // 3))
    target, reference = distribution(TICKETS["skewed"]), np.full(3, 1 / 3)
    exact = np.mean([exploitability(game, target) for game in preferences[:3]])
    gap = np.mean([half_gap(game, target, reference) for game in preferences[:3]])
    actions = sampled(0, [target, reference], prompts, 32)
    table, ratios = table_of(preferences, actions), log_ratio(actions[:, 0], target, reference)
    best = best_response_bound(table, 0, [1], 0.95).gain
    soft = regularised_bound(table, 0, 1, ratios, KL_TAU, 0.95).gain
    assert exact - 0.03 < best.value < exact + 4 * error_of(best)
    assert gap - 0.03 < soft.value < gap + 4 * error_of(soft)


def test_intervals_hold_the_expectation_and_their_lower_ends_lie_below_the_truth() -> None:
    preferences, tickets, reference = GAMES["cyc"], TICKETS["skewed"], [0, 1, 2]
    target, mu = distribution(tickets), distribution(reference)
    actions = enumerated([tickets, reference], 3)
    table, ratios = table_of(preferences, actions), log_ratio(actions[:, 0], target, mu)
    exact = exploitability(preferences, target), half_gap(preferences, target, mu)
    mean = [
        best_response_bound(table, 0, None, 0.9).gain.value,
        regularised_bound(table, 0, 1, ratios, KL_TAU, 0.9).gain.value,
    ]
    rng, simulations, covered, honest = np.random.default_rng(0), 300, np.zeros(2), np.zeros(2)
    for seed in range(simulations):
        drawn = rng.integers(0, len(table), 50)
        gains = (
            best_response_bound(table[drawn], 0, None, 0.9, seed).gain,
            regularised_bound(table[drawn], 0, 1, ratios[drawn], KL_TAU, 0.9, seed).gain,
        )
        covered += [gain.low <= m <= gain.high for gain, m in zip(gains, mean, strict=True)]
        honest += [gain.low <= value for gain, value in zip(gains, exact, strict=True)]
    assert np.abs(covered / simulations - 0.9).max() < 3.5 * np.sqrt(0.9 * 0.1 / simulations)
    assert honest.min() / simulations >= 0.95, "one tail of the interval is 0.05"


# What plays no part, and what cannot be answered


@pytest.mark.parametrize("samples", [2, 5])
def test_a_judge_without_opinions_finds_nothing(samples: int) -> None:
    table, nothing = np.full((10, 3, samples, 3, samples), 0.5), np.zeros((10, samples))
    gain = best_response_bound(table, 1, None, 0.95).gain
    assert gain.low < gain.value == 0 < gain.high == -gain.low, "ten prompts alike do not speak for all"
    for reference in (0, 1):
        gain = regularised_bound(table, 1, reference, nothing, KL_TAU, 0.95).gain
        assert (gain.low, gain.value, gain.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_order_of_the_players_plays_no_part() -> None:
    table, order = table_of(GAMES["cyc"], sampled(0, [np.full(3, 1 / 3)] * 3, 50, 4)), np.array([2, 0, 1])
    turned = table[:, order][:, :, :, order]
    first, second = best_response_bound(table, 0, None, 0.95), best_response_bound(turned, 1, None, 0.95)
    assert [n for n, _ in first.curve] == [n for n, _ in second.curve]
    assert [gain for _, gain in first.curve] == pytest.approx([gain for _, gain in second.curve])
    ratios = np.ones((50, 4))
    soft = regularised_bound(table, 0, 2, ratios, KL_TAU, 0.95).gain
    assert soft.value == pytest.approx(regularised_bound(turned, 1, 0, ratios, KL_TAU, 0.95).gain.value)


def test_a_single_prompt_leaves_all_that_a_gain_can_be() -> None:
    gain = best_response_bound(random_table(0, 1, 2, 4), 0, None, 0.95).gain
    assert (gain.low, gain.high, gain.prompts) == (-0.5, 0.5, 1)


def test_only_what_is_needed_must_have_been_asked() -> None:
    table = random_table(0, 5, 3, 4)
    table[:, 0, :, 0] = table[:, 1, :, 2] = table[:, 2, :, 1] = np.nan
    best_response_bound(table, 0, [1, 2], 0.95)
    regularised_bound(table, 0, 2, np.zeros((5, 4)), KL_TAU, 0.95)
    for proposers in (None, [0], []):
        with pytest.raises(InputError, match="compared with every sample"):
            best_response_bound(table, 0, proposers, 0.95)


def test_unusable_input() -> None:
    table, ratios = random_table(0, 5, 2, 3), np.zeros((5, 3))
    with pytest.raises(InputError, match="at least two samples"):
        best_response_bound(table[:, :, :1, :, :1], 0, None, 0.95)
    with pytest.raises(InputError, match="sum to 1"):
        best_response_bound(table**2, 0, None, 0.95)
    with pytest.raises(InputError, match=r"must be \[X, n, K, n, K\]"):
        best_response_bound(table[0], 0, None, 0.95)
    with pytest.raises(InputError, match="kl_tau must be positive"):
        regularised_bound(table, 0, 1, ratios, 0.0, 0.95)
    for wrong in (ratios[:4], ratios[:, 0], ratios + np.inf):
        with pytest.raises(InputError, match="finite and"):
            regularised_bound(table, 0, 1, wrong, KL_TAU, 0.95)
