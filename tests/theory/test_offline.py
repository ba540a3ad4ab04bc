"""Where offline learning from pairs ends, by minimising each loss over all the pairs of a small game.

Expected numbers are closed forms and figures of the papers named, computed by an independent numpy implementation.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from alignrun.games import CYC, DICE, Game, exploitability, nash_equilibrium, win_rate, win_rates
from alignrun.objectives.preference import bradley_terry_loss, dpo_loss, ipo_loss, margins, preference_loss

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of a pair's margin or columns and its label."""


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


UNIFORM = vector(1 / 3, 1 / 3, 1 / 3)


def near(actual: Tensor, *expected: float, atol: float = 1e-6) -> None:
    assert_close(actual, vector(*expected).reshape(actual.shape), rtol=0, atol=atol)


def table(**preferences: float) -> Tensor:
    """[3, 3] from P(b ≻ a) and so on."""
    result = torch.full((3, 3), 0.5, dtype=torch.float64)
    for (winner, loser), p in preferences.items():
        i, j = "abc".index(winner), "abc".index(loser)
        result[i, j], result[j, i] = p, 1 - p
    return result


def bradley_terry_table(rewards: Tensor) -> Tensor:
    """P[i, j] = e^r_i / (e^r_i + e^r_j)."""
    odds = rewards.exp()
    return odds[:, None] / (odds[:, None] + odds[None])


def every_pair(n: int) -> Tensor:
    """All ordered pairs of n actions, [n², 2]."""
    return torch.cartesian_prod(torch.arange(n), torch.arange(n))


def minimiser(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a convex objective of a few numbers is least, by Newton's steps; what it does not depend on stays."""
    x, gradient, hessian = start, torch.func.grad(objective), torch.func.hessian(objective)
    for _ in range(15):
        x = x - torch.linalg.pinv(hessian(x), rtol=1e-9, hermitian=True) @ gradient(x)
    assert gradient(x).abs().max() < 1e-12
    return x


def pair_margins(logits: Tensor, reference: Tensor, pairs: Tensor) -> Tensor:
    return margins(logits.log_softmax(-1)[pairs], reference.log()[pairs])


def offline_policy(loss: Loss, game: Game, sampling: Tensor) -> Tensor:
    """The policy that minimises E[loss(h(y, y'), P(y ≻ y'))] over y, y' from the sampling distribution."""
    pairs = every_pair(len(sampling))
    weights, labels = sampling[pairs].prod(-1), game.preferences[pairs[:, 0], pairs[:, 1]]
    logits = minimiser(lambda x: weights @ loss(pair_margins(x, game.reference, pairs), labels), game.reference.log())
    return logits.softmax(-1)


def fitted_rewards(preferences: Tensor, sampling: Tensor) -> Tensor:
    """The Bradley-Terry rewards of y, y' from the sampling distribution, that of the first action being 0."""
    pairs = every_pair(len(sampling))
    weights, labels = sampling[pairs].prod(-1), preferences[pairs[:, 0], pairs[:, 1]]
    rewards = minimiser(lambda x: weights @ bradley_terry_loss(x[pairs], labels), sampling.new_zeros(len(sampling)))
    return rewards - rewards[0]


# Rewards against preferences (arXiv 2312.00886)


@pytest.mark.parametrize("epsilon", [0.1, -0.1])
def test_a_reward_model_jumps_where_the_equilibrium_hardly_moves(epsilon: float) -> None:
    preferences = table(ba=2 / 3 - epsilon / 2, ca=1 / 3 - epsilon / 4, cb=2 / 3 + epsilon / 4)
    game = Game(preferences, UNIFORM, ("a", "b", "c"))
    equilibrium = nash_equilibrium(game)
    near(equilibrium, 1 / 3 + epsilon / 2, 1 / 3 + epsilon / 2, 1 / 3 - epsilon)
    near(win_rates(game, equilibrium), 0.5, 0.5, 0.5)

    sign = math.copysign(1, epsilon)
    rewards = fitted_rewards(preferences, UNIFORM)
    near(rewards, 0, -sign * 0.200502, -sign * 0.100251)
    # The policy of the highest reward is a, then b; either loses most comparisons to some action.
    best = rewards.argmax()
    assert best == (0 if epsilon > 0 else 1)
    assert exploitability(game, torch.eye(3, dtype=torch.float64)[best]) > 0.1


def test_the_higher_reward_may_be_preferred_less_often() -> None:
    rewards = vector(0, math.log(9), math.log(2))
    pairs = every_pair(3)
    chances = torch.exp(-bradley_terry_loss(rewards[pairs], torch.ones(9))).reshape(3, 3)
    near(chances, 1 / 2, 1 / 10, 1 / 3, 9 / 10, 1 / 2, 9 / 11, 2 / 3, 2 / 11, 1 / 2)
    assert_close(fitted_rewards(chances, UNIFORM), rewards, rtol=0, atol=1e-7)

    preferred, rewarded = vector(0, 0, 1), vector(2 / 3, 1 / 3, 0)
    game = Game(chances, UNIFORM, ("a", "b", "c"))
    near(win_rate(game, preferred, rewarded), 50 / 99)
    near(rewarded @ rewards, 0.732408)
    near(preferred @ rewards, 0.693147)


@pytest.mark.parametrize(
    ("sampling", "rewards", "rates"),
    [
        (UNIFORM, (0, -0.405465, -0.405465), (1.7 / 3, 1.4 / 3, 1.4 / 3)),
        (vector(0.1, 0.45, 0.45), (0, 0.021684, -0.873246), (0.59, 0.595, 0.385)),
    ],
    ids=["uniform", "skewed"],
)
def test_rewards_keep_win_rates_against_the_sampling_policy_and_depend_on_it(
    sampling: Tensor, rewards: tuple[float, ...], rates: tuple[float, ...]
) -> None:
    fitted = fitted_rewards(CYC.preferences, sampling)
    near(fitted, *rewards)
    near(win_rates(CYC, sampling), *rates)
    near(bradley_terry_table(fitted) @ sampling, *rates)


def test_a_pairwise_model_learns_the_cycle_that_no_reward_can() -> None:
    pairs = every_pair(3)
    both_orders = torch.stack([pairs @ torch.tensor([3, 1]), pairs @ torch.tensor([1, 3])], dim=-1)
    labels = CYC.preferences.flatten()
    scores = minimiser(lambda x: preference_loss(x[both_orders], labels).mean(), torch.zeros(9, dtype=torch.float64))
    # The score of order (y, y') is free; only half its difference to that of (y', y) is the logit.
    near(torch.sigmoid(0.5 * (scores.reshape(3, 3) - scores.reshape(3, 3).T)), *labels.tolist())
    assert (bradley_terry_table(fitted_rewards(CYC.preferences, UNIFORM)) - CYC.preferences).abs().max() > 0.2


# Policies from pairs (arXiv 2310.12036)


def test_dpo_ends_where_rlhf_with_the_fitted_reward_does() -> None:
    expected = (0.692308, 0.184615, 0.123077)
    near(offline_policy(partial(dpo_loss, kl_tau=0.5), CYC, UNIFORM), *expected)
    rewards = fitted_rewards(CYC.preferences, UNIFORM)
    near(torch.softmax(CYC.reference.log() + rewards / 0.5, -1), *expected)


SAMPLING = (vector(0.6, 0.3, 0.1), vector(0.1, 0.3, 0.6))


@pytest.mark.parametrize(
    ("sampling", "policy"),
    zip(SAMPLING, [(0.365639, 0.247834, 0.386527), (0.276491, 0.431222, 0.292287)], strict=True),
    ids=["first", "last"],
)
def test_ipo_ends_at_the_best_response_to_the_sampling_policy(sampling: Tensor, policy: tuple[float, ...]) -> None:
    near(offline_policy(partial(ipo_loss, kl_tau=0.1), DICE, sampling), *policy)


def test_dpo_does_not_depend_on_sampling_if_the_preferences_have_rewards() -> None:
    rewards, kl_tau = vector(1.0, -0.5, 0.2), 0.5
    game = Game(bradley_terry_table(rewards), vector(0.5, 0.3, 0.2), ("a", "b", "c"))
    closed_form = vector(0.5 * math.exp(2.0), 0.3 * math.exp(-1.0), 0.2 * math.exp(0.4))
    first, last = (offline_policy(partial(dpo_loss, kl_tau=kl_tau), game, sampling) for sampling in SAMPLING)
    near(first, *(closed_form / closed_form.sum()).tolist())
    near(last, *(closed_form / closed_form.sum()).tolist())
    first, last = (offline_policy(partial(ipo_loss, kl_tau=kl_tau), game, sampling) for sampling in SAMPLING)
    assert (first - last).abs().max() > 1e-3


# Deterministic preferences (arXiv 2310.12036)

CERTAIN = Game(vector(0.5, 1, 0, 0.5).reshape(2, 2), vector(0.5, 0.5), ("a", "b"))


@pytest.mark.parametrize(("kl_tau", "first"), [(0.1, 0.993307), (1.0, 0.622459), (10.0, 0.512497)])
def test_ipo_stays_near_the_reference_if_the_winner_is_certain(kl_tau: float, first: float) -> None:
    near(offline_policy(partial(ipo_loss, kl_tau=kl_tau), CERTAIN, vector(0.5, 0.5)), first, 1 - first)


@pytest.mark.parametrize("kl_tau", [0.1, 1.0, 10.0])
def test_dpo_leaves_the_reference_at_any_temperature_if_the_winner_is_certain(kl_tau: float) -> None:
    logits = torch.tensor([[0.0], [1.0], [3.0], [10.0], [30.0]], dtype=torch.float64, requires_grad=True)
    both = torch.cat([logits, torch.zeros_like(logits)], dim=-1)
    h = margins(both.log_softmax(-1), CERTAIN.reference.log())
    losses = dpo_loss(h, torch.ones_like(h), kl_tau)
    (slopes,) = torch.autograd.grad(losses.sum(), logits)
    assert (losses.diff() < 0).all()
    assert (slopes < 0).all()
    near(losses[-1], 0, atol=0.05)
    expected = [-kl_tau / (1 + math.exp(kl_tau * logit)) for logit in (0, 1, 3, 10, 30)]
    assert_close(slopes, vector(*expected)[:, None], rtol=1e-9, atol=0)


def data_objective(loss: Loss, data: str) -> Callable[[Tensor], Tensor]:
    """The mean loss of the logits of a, b and c, with a uniform μ, on pairs such as "ab": a was preferred to b."""
    pairs = torch.tensor([["abc".index(action) for action in pair] for pair in data.split()])
    return lambda x: loss(pair_margins(x, UNIFORM, pairs), torch.ones(len(pairs), dtype=torch.float64)).mean()


START = vector(0.5, 0.2, -0.7)
CHAIN, CYCLE, BOTH_WAYS, BOTH_WAYS_AND_LAST = "ab bc ac", "ab bc ca", "ab ba", "ab ba ac"


@pytest.mark.parametrize(
    ("data", "policy"),
    [
        (CHAIN, (0.448441, 0.321322, 0.230237)),
        (CYCLE, (1 / 3, 1 / 3, 1 / 3)),
        (BOTH_WAYS_AND_LAST, (0.383652, 0.383652, 0.232697)),
    ],
)
def test_ipo_on_a_finite_data_set(data: str, policy: tuple[float, ...]) -> None:
    near(minimiser(data_objective(partial(ipo_loss, kl_tau=1.0), data), START).softmax(-1), *policy)


@pytest.mark.parametrize("kl_tau", [0.1, 1.0, 10.0])
def test_ipo_on_a_chain_has_logits_inverse_to_the_temperature(kl_tau: float) -> None:
    logits = minimiser(data_objective(partial(ipo_loss, kl_tau=kl_tau), CHAIN), START)
    near(logits - logits.mean(), 1 / (3 * kl_tau), 0, -1 / (3 * kl_tau))


@pytest.mark.parametrize("loss", [dpo_loss, ipo_loss])
def test_pairs_that_contradict_each_other_undo_each_other(loss: Callable[..., Tensor]) -> None:
    cycle, both_ways = (
        minimiser(data_objective(partial(loss, kl_tau=1.0), data), START) for data in (CYCLE, BOTH_WAYS)
    )
    near(cycle.softmax(-1), 1 / 3, 1 / 3, 1 / 3)
    near(both_ways, 0.35, 0.35, -0.7)  # no pair moves c


def descend(objective: Callable[[Tensor], Tensor], steps: int) -> tuple[Tensor, list[float]]:
    """The policy after plain gradient steps of length 1, and the losses on the way."""
    logits, losses = torch.zeros(3, dtype=torch.float64, requires_grad=True), []
    for _ in range(steps):
        loss = objective(logits)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - gradient).detach().requires_grad_()
        losses.append(loss.item())
    return logits.detach().softmax(-1), losses


@pytest.mark.parametrize(
    ("data", "kl_tau", "steps", "policy", "infimum"),
    [
        (CHAIN, 1.0, 10, (0.79778405, 0.16718174, 0.03503421), 0),
        (CHAIN, 1.0, 1000, (0.99702077, 0.00297038, 0.00000885), 0),
        (CHAIN, 0.1, 100, (0.94813478, 0.04930161, 0.00256361), 0),
        (BOTH_WAYS_AND_LAST, 1.0, 10, (0.49698448, 0.40073944, 0.10227608), 2 / 3 * math.log(2)),
        (BOTH_WAYS_AND_LAST, 1.0, 1000, (0.5, 0.49898759, 0.00101242), 2 / 3 * math.log(2)),
    ],
)
def test_dpo_drives_what_never_won_to_zero(
    data: str, kl_tau: float, steps: int, policy: tuple[float, ...], infimum: float
) -> None:
    reached, losses = descend(data_objective(partial(dpo_loss, kl_tau=kl_tau), data), steps)
    near(reached, *policy, atol=1e-8)
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert infimum < losses[-1]
    if steps == 1000:
        assert losses[-1] < infimum + 0.003
