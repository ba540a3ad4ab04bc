"""Prompts as a player: another solver, copies, and games whose equilibrium is known."""

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, minimize

from alignrun.evaluation.king_of_the_hill import SLACK, copies, king_of_the_hill
from alignrun.evaluation.standings import nash_average
from alignrun.evaluation.tournament_results import separating
from alignrun.games import CYC


def random_rates(prompts: int, players: int, seed: int) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).random((prompts, players, players)), 1)
    return upper + np.tril(1 - upper.swapaxes(1, 2), -1) + np.eye(players) / 2


def all_gains(rates: np.ndarray) -> np.ndarray:
    """[X + 2n, X·n·n] what each player gains by each of its actions, for each draw, by enumeration."""
    prompts, n = rates.shape[:2]
    pay = (np.abs(2 * rates - 1), rates, rates.swapaxes(1, 2))
    rows = []
    for player, actions in enumerate((prompts, n, n)):
        for action in range(actions):
            row = []
            for drawn in np.ndindex(prompts, n, n):
                instead = list(drawn)
                instead[player] = action
                row.append(pay[player][tuple(instead)] - pay[player][drawn])
            rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("prompts", "players", "seed"), [(2, 2, 0), (3, 2, 1), (2, 3, 2), (4, 3, 3)])
def test_another_solver_finds_the_same_distribution(prompts: int, players: int, seed: int) -> None:
    """The primal: maximum entropy over distributions under which no player gains more than ε, by SLSQP."""
    rates, slack = random_rates(prompts, players, seed), 0.01
    gains, size = all_gains(rates), prompts * players**2
    primal = minimize(
        lambda p: float((p * np.log(p)).sum()),
        np.full(size, 1 / size),
        jac=lambda p: np.log(p) + 1,
        method="SLSQP",
        bounds=[(1e-12, 1)] * size,
        constraints=[LinearConstraint(np.ones(size), 1, 1), LinearConstraint(gains, -np.inf, slack)],
        options={"ftol": 1e-14, "maxiter": 2000},
    )
    hill = king_of_the_hill(rates, slack)
    assert hill is not None
    assert (gains @ hill.joint.ravel()).max() <= slack + 1e-4
    assert (hill.joint * np.log(hill.joint)).sum() == pytest.approx(primal.fun, abs=2e-3)
    assert hill.joint.ravel() == pytest.approx(primal.x, abs=5e-3)


def test_gains_are_those_of_the_definition_and_small() -> None:
    rates = random_rates(5, 4, seed=7)
    hill = king_of_the_hill(rates)
    assert hill is not None
    found = all_gains(rates) @ hill.joint.ravel()
    assert np.concatenate([hill.prompt_gains, hill.policy_gains, hill.policy_gains]) == pytest.approx(found, abs=1e-9)
    assert found.max() <= 1.2 * SLACK
    assert hill.joint == pytest.approx(hill.joint.swapaxes(1, 2), abs=1e-12)
    assert hill.joint.sum() == pytest.approx(1)
    mean = sum(hill.joint.sum(0)[i, j] * abs(2 * rates[3, i, j] - 1) for i in range(4) for j in range(4))
    assert hill.separation[3] == pytest.approx(mean)


def test_equal_prompts_leave_the_equilibrium_of_the_policies() -> None:
    """Then the prompts play no part, and the policies are those of Nash averaging, mixed as in a cycle."""
    cycle = CYC.preferences.numpy()
    hill = king_of_the_hill(np.broadcast_to(cycle, (6, 3, 3)))
    assert hill is not None
    assert hill.joint.sum((0, 2)) == pytest.approx(nash_average(cycle)[0], abs=0.01)
    assert hill.joint.sum((1, 2)) == pytest.approx(np.full(6, 1 / 6))
    assert hill.policy_gains == pytest.approx(np.zeros(3), abs=4 * SLACK)


def test_a_copy_of_a_prompt_or_a_policy_changes_nothing() -> None:
    rates = random_rates(3, 3, seed=11)
    hill = king_of_the_hill(rates)
    prompts, policies = [0, 0, 0, 1, 2], [0, 1, 1, 2]
    more = king_of_the_hill(rates[prompts][:, policies][:, :, policies])
    assert hill is not None
    assert more is not None
    folded = np.zeros_like(hill.joint)
    for (x, i, j), share in np.ndenumerate(more.joint):
        folded[prompts[x], policies[i], policies[j]] += share
    assert folded == pytest.approx(hill.joint, abs=1e-4)
    assert more.separation == pytest.approx(hill.separation[prompts], abs=1e-3)
    assert more.policy_gains == pytest.approx(hill.policy_gains[policies], abs=1e-4)


def test_copies_share_a_place_as_in_the_published_library() -> None:
    """polarix 0.1.2: the maximum affinity entropy of rock, rock, paper, scissors is (1/6, 1/6, 1/3, 1/3)."""
    game = np.array([[0, 0, -1, 1], [0, 0, -1, 1], [1, 1, 0, -1], [-1, -1, 1, 0]])
    weight = 1 / copies(game)
    assert weight / weight.sum() == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3])


def test_specialists_hold_out_and_a_prompt_that_tells_nothing_separates_nobody() -> None:
    """Each of two policies wins one prompt; on the third they are level, and a third policy always loses."""
    first = np.array([[0.5, 0.9, 0.95], [0.1, 0.5, 0.9], [0.05, 0.1, 0.5]])
    second = first[np.ix_([1, 0, 2], [1, 0, 2])]
    level = np.array([[0.5, 0.5, 0.6], [0.5, 0.5, 0.6], [0.4, 0.4, 0.5]])
    hill = king_of_the_hill(np.stack([first, second, level]))
    assert hill is not None
    assert hill.policy_gains[:2] == pytest.approx([0, 0], abs=2 * SLACK)
    assert hill.policy_gains[2] < -0.3
    assert hill.separation[0] == pytest.approx(hill.separation[1], abs=1e-3)
    assert hill.separation[2] < 0.1 < 0.3 < hill.separation[0]


def test_a_policy_that_wins_every_prompt_plays_alone() -> None:
    rates = random_rates(20, 4, seed=5)
    rates[:, 0, 1:], rates[:, 1:, 0] = 0.8, 0.2
    hill = king_of_the_hill(rates)
    assert hill is not None
    assert hill.joint.sum((0, 2))[0] > 0.99
    assert hill.policy_gains == pytest.approx([0, -0.3, -0.3, -0.3], abs=2 * SLACK)
    assert hill.separation.max() < 0.01


def test_many_prompts_are_solved() -> None:
    hill = king_of_the_hill(random_rates(300, 6, seed=13))
    assert hill is not None


def test_where_one_policy_is_best_everywhere_no_prompt_is_listed() -> None:
    """What is left of its separation is the equilibrium's slack."""
    rates = np.full((6, 3, 3), 0.5)
    rates[:, 0, 1:], rates[:, 1:, 0] = 0.9, 0.1
    hill = king_of_the_hill(rates)
    assert hill is not None
    prompts = [f"prompt {place}" for place in range(6)]
    assert separating(prompts, hill.separation.tolist(), 10) == ()
    assert [one.prompt for one in separating(prompts[:3], [0.3, 0.0, 0.5], 10)] == ["prompt 2", "prompt 0"]
