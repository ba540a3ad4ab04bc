"""The online objectives by enumerating a game: their gradients, their zeros, and how they are related.

A policy here is a softmax of three logits, and an expectation the sum over all pairs of actions. Numbers are those of
the papers' closed forms; equilibria and steps come from `games`, which other tests compare with the literature.
"""

from collections.abc import Callable

import pytest
import torch
from helpers import bradley_terry_fixed_point
from torch import Tensor
from torch.testing import assert_close

from alignrun.games import (
    CYC,
    DICE,
    RPS,
    Game,
    best_response,
    equilibrium,
    exploitability,
    extragradient_step,
    geometric_mixture,
    kl,
    mirror_descent_step,
    mixture_equilibrium,
    nash_equilibrium,
    optimistic_step,
    win_rates,
)
from alignrun.objectives.nash import (
    extragradient_loss,
    online_ipo_loss,
    optimistic_labels,
    self_play_regression_loss,
)
from alignrun.objectives.preference import dpo_loss, ipo_loss

TAU = 0.1
P = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)

PairLoss = Callable[[Tensor, Tensor], Tensor]


def near(actual: Tensor, *expected: float, atol: float = 1e-6) -> None:
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def expected_gradient(
    game: Game,
    policy: Tensor,
    sampler: Tensor,
    loss: PairLoss,
    anchor: Tensor | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """∇ E[loss(h, P(y ≻ y'))] in the policy's logits, y from `sampler` and y' from `other`, both held fixed."""
    logits = policy.log().requires_grad_()
    ratio = logits.log_softmax(0) - (game.reference if anchor is None else anchor).log()
    h = (ratio[:, None] - ratio[None, :]).flatten()
    weights = (sampler[:, None] * (sampler if other is None else other)[None, :]).flatten()
    (gradient,) = torch.autograd.grad((weights * loss(h, game.preferences.flatten())).sum(), logits)
    return gradient


def self_play_gradient(game: Game, policy: Tensor, kl_tau: float) -> Tensor:
    """∇[P(π ≻ sg π) − τKL(π‖μ)] in the policy's logits."""
    logits = policy.log().requires_grad_()
    pi = logits.softmax(0)
    (gradient,) = torch.autograd.grad(pi @ win_rates(game, policy) - kl_tau * kl(pi, game.reference), logits)
    return gradient


def online_ipo(h: Tensor, labels: Tensor) -> Tensor:
    return online_ipo_loss(h, labels, TAU)


def online_dpo(h: Tensor, labels: Tensor) -> Tensor:
    return dpo_loss(h, labels, TAU)


# Online IPO


def test_online_ipo_is_self_play_four_times_over() -> None:
    near(self_play_gradient(CYC, P, TAU), 0.0278236, 0.0292466, -0.0570702, atol=1e-7)
    raw = expected_gradient(CYC, P, P, lambda h, p: ipo_loss(h, p, TAU))
    near(raw, -1.112942, -1.169865, 2.282807)
    assert_close(raw, -4 / TAU * self_play_gradient(CYC, P, TAU))
    assert_close(expected_gradient(CYC, P, P, online_ipo), -4 * self_play_gradient(CYC, P, TAU))


def test_the_implemented_form_differs_from_the_square_by_a_constant() -> None:
    h, labels = torch.linspace(-3, 3, 7, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64).expand(7)
    difference = TAU * ipo_loss(h, labels, TAU) - online_ipo_loss(h, labels, TAU)
    assert_close(difference, difference[:1].expand(7))


def test_online_ipo_stops_at_the_equilibrium_only() -> None:
    near(expected_gradient(CYC, *[equilibrium(CYC, TAU)] * 2, online_ipo), 0, 0, 0, atol=1e-9)
    for policy in (CYC.reference, best_response(CYC, CYC.reference, TAU), mixture_equilibrium(CYC, TAU, 0.5)):
        assert expected_gradient(CYC, policy, policy, online_ipo).abs().max() > 0.01


@pytest.mark.parametrize("mix_beta", [0.0, 0.125, 0.5, 1.0])
def test_ipo_md_stops_where_nash_md_does(mix_beta: float) -> None:
    target = mixture_equilibrium(CYC, TAU, mix_beta)
    sampler = geometric_mixture(target, CYC.reference, mix_beta)
    near(expected_gradient(CYC, target, sampler, online_ipo), 0, 0, 0, atol=1e-9)
    if mix_beta:
        assert expected_gradient(CYC, equilibrium(CYC, TAU), sampler, online_ipo).abs().max() > 1e-3


def test_the_gradient_of_ipo_md_is_a_covariance_under_the_mixture() -> None:
    """−4 Cov_ν(∇log π, P(y ≻ ν) − τΔ), which differs from the centred form of Nash-MD for β > 0."""
    sampler = geometric_mixture(P, CYC.reference, 0.3)
    score = torch.eye(3, dtype=torch.float64) - P  # row y is ∇log π(y) in the logits
    value = win_rates(CYC, sampler) - TAU * (P.log() - CYC.reference.log())
    mean_score, mean_value = sampler @ score, sampler @ value
    covariance = (sampler * (value - mean_value)) @ (score - mean_score)
    assert_close(expected_gradient(CYC, P, sampler, online_ipo), -4 * covariance)
    assert mean_score.abs().max() > 0.01, "otherwise the centring would not matter"


# Online DPO


def test_online_dpo_has_the_solution_of_rlhf_and_not_the_equilibrium() -> None:
    optimum = torch.tensor(bradley_terry_fixed_point(CYC, 0.5, lambda pi: pi), dtype=torch.float64)
    loss: PairLoss = lambda h, p: dpo_loss(h, p, 0.5)  # noqa: E731
    near(expected_gradient(CYC, optimum, optimum, loss), 0, 0, 0, atol=1e-9)
    at_equilibrium = equilibrium(CYC, 0.5)
    assert expected_gradient(CYC, at_equilibrium, at_equilibrium, loss).abs().max() > 0.01


def test_on_two_actions_online_dpo_and_the_equilibrium_part() -> None:
    table = torch.tensor([[0.5, 0.7], [0.3, 0.5]], dtype=torch.float64)
    game = Game(table, torch.tensor([0.5, 0.5], dtype=torch.float64), ("a", "b"))
    nash, rlhf = equilibrium(game, 1.0), torch.tensor([0.7, 0.3], dtype=torch.float64)
    near(nash[:1], 0.549834)
    near(expected_gradient(game, rlhf, rlhf, lambda h, p: dpo_loss(h, p, 1.0)), 0, 0, atol=1e-12)
    near(expected_gradient(game, nash, nash, lambda h, p: dpo_loss(h, p, 1.0)), -0.074337, 0.074337)


# Iterations on an anchor


def inpo_gradient(policy: Tensor, anchor: Tensor, kl_tau: float, step_eta: float) -> Tensor:
    mixed = geometric_mixture(anchor, CYC.reference, kl_tau * step_eta)
    return expected_gradient(CYC, policy, anchor, lambda h, p: online_ipo_loss(h, p, 1 / step_eta), mixed)


def test_inpo_solves_a_step_of_mirror_descent() -> None:
    target = torch.tensor([0.257291, 0.355106, 0.387603], dtype=torch.float64)
    near(inpo_gradient(target / target.sum(), P, 0.1, 2.0), 0, 0, 0, atol=1e-5)
    assert_close(mirror_descent_step(CYC, P, 0.1, 2.0), target, rtol=0, atol=1e-6)
    near(inpo_gradient(mirror_descent_step(CYC, P, 0.1, 2.0), P, 0.1, 2.0), 0, 0, 0, atol=1e-12)


def test_inpo_stands_still_at_the_equilibrium() -> None:
    near(inpo_gradient(*[equilibrium(CYC, TAU)] * 2, TAU, 3.0), 0, 0, 0, atol=1e-9)


def test_sppo_is_multiplicative_weights_but_for_the_normaliser() -> None:
    """Where the normaliser is exp(η/2), as for P(π_t ≻ π_t) = ½ and a small step, the regression is solved by MWU."""
    step_eta = 1e-3
    solved = mirror_descent_step(RPS, P, 0.0, step_eta)
    loss = self_play_regression_loss((solved / P).log(), win_rates(RPS, P), step_eta)
    assert loss.max() < step_eta**3  # η(½ − log Z/η)², and log Z = η/2 + O(η²)
    assert_close(self_play_regression_loss(torch.tensor([0.3]), torch.tensor([0.7]), 2.0), torch.tensor([0.005]))


def test_the_last_iterate_of_multiplicative_weights_leaves_and_their_average_comes() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    total, first = torch.zeros(3, dtype=torch.float64), float(kl(UNIFORM, policy))
    for _ in range(2000):
        total += policy
        last, policy = policy, mirror_descent_step(RPS, policy, 0.0, 0.1)
    assert first == pytest.approx(0.070240, abs=1e-6)
    assert float(kl(UNIFORM, last)) == pytest.approx(0.254090, abs=1e-6)
    assert float(exploitability(RPS, total / 2000)) == pytest.approx(0.0069, abs=5e-5)


# Optimistic steps


def test_optimistic_labels_are_solved_by_the_optimistic_step() -> None:
    """Pairs of π_t with labels that also hold the win rates against π_{t−1}."""
    step_eta, before = 2.0, torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    rates = win_rates(CYC, before)
    edges = (rates[:, None] - rates[None, :]).flatten()
    loss: PairLoss = lambda h, p: online_ipo_loss(h, optimistic_labels(p, edges), 1 / step_eta)  # noqa: E731
    solved = optimistic_step(CYC, P, before, step_eta)
    near(expected_gradient(CYC, solved, P, loss, anchor=P), 0, 0, 0, atol=1e-12)
    assert_close(solved, (P.log() + step_eta * (2 * win_rates(CYC, P) - rates)).softmax(0))
    for other in (mirror_descent_step(CYC, P, 0.0, step_eta), optimistic_step(CYC, P, P, step_eta)):
        assert expected_gradient(CYC, other, P, loss, anchor=P).abs().max() > 0.01


def test_the_two_fits_of_onpo_are_one_optimistic_step() -> None:
    """π'_{t+1} and π_{t+1} solve the regression on pairs of π_t from π'_t and π'_{t+1}; π_t is π'_t exp(ηPπ_{t−1})."""
    step_eta, auxiliary = 0.7, torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    previous, loss = UNIFORM, lambda h, p: online_ipo_loss(h, p, 1 / 0.7)

    def ascend(start: Tensor, opponent: Tensor) -> Tensor:
        return (start.log() + step_eta * win_rates(CYC, opponent)).softmax(0)

    policy = ascend(auxiliary, previous)
    first = ascend(auxiliary, policy)
    second = ascend(first, policy)
    near(expected_gradient(CYC, first, policy, loss, anchor=auxiliary), 0, 0, 0, atol=1e-12)
    near(expected_gradient(CYC, second, policy, loss, anchor=first), 0, 0, 0, atol=1e-12)
    assert expected_gradient(CYC, second, policy, loss, anchor=auxiliary).abs().max() > 0.01
    assert_close(second, optimistic_step(CYC, policy, previous, step_eta))


def test_optimism_lets_the_last_iterate_converge() -> None:
    start, target = CYC.reference, nash_equilibrium(CYC)
    for step_eta, settles in ((2.0, True), (3.0, True), (4.0, False)):
        before = policy = start
        for _ in range(100):
            before, policy = policy, optimistic_step(CYC, policy, before, step_eta)
        assert bool((policy - target).abs().max() < 1e-3) is settles


# Several anchors, and two divergences


def test_mnpo_solves_a_mirror_step_from_the_geometric_mean_of_its_history() -> None:
    step_eta, older = 2.0, torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    mean = geometric_mixture(P, older, 0.25)
    against = 0.75 * win_rates(CYC, P) + 0.25 * win_rates(CYC, older)
    solved = (0.8 * mean.log() + 0.2 * CYC.reference.log() + step_eta * against).softmax(0)
    anchor = geometric_mixture(mean, CYC.reference, TAU * step_eta)
    rates = win_rates(CYC, older)
    edges = (rates[:, None] - rates[None, :]).flatten()
    loss: PairLoss = lambda h, p: online_ipo_loss(h, 0.75 * p + 0.25 * (0.5 + edges), 1 / step_eta)  # noqa: E731
    near(expected_gradient(CYC, solved, P, loss, anchor=anchor), 0, 0, 0, atol=1e-12)


# Extragradient


@pytest.mark.parametrize("sampler", [UNIFORM, P])
def test_the_extragradient_regression_is_solved_by_the_best_response_from_anywhere(sampler: Tensor) -> None:
    opponent = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    edges = win_rates(CYC, opponent)
    pairs = (edges[:, None] - edges[None, :]).flatten()
    solved = best_response(CYC, opponent, TAU)
    loss: PairLoss = lambda h, _: extragradient_loss(h, pairs, TAU)  # noqa: E731
    near(expected_gradient(CYC, solved, sampler, loss), 0, 0, 0, atol=1e-12)
    assert expected_gradient(CYC, P, sampler, loss).abs().max() > 0.01


def test_two_gradient_steps_on_uniform_pairs_are_one_of_mirror_prox() -> None:
    """One step of size λ on the mean over uniform pairs is mirror descent with η = 4λ/N for the loss τ(h − d/τ)²."""
    rate, n = 0.6, 3

    def step(start: Tensor, opponent: Tensor) -> Tensor:
        edges = win_rates(CYC, opponent)
        pairs = (edges[:, None] - edges[None, :]).flatten()
        gradient = expected_gradient(CYC, start, UNIFORM, lambda h, _: extragradient_loss(h, pairs, TAU))
        return (start.log() - rate * gradient).softmax(0)

    half = step(P, P)
    assert_close(half, mirror_descent_step(CYC, P, TAU, 4 * rate / n))
    assert_close(step(P, half), extragradient_step(CYC, P, TAU, 4 * rate / n))


def test_mirror_prox_contracts_as_its_theorem_says() -> None:
    """At η = 2τ of arXiv 2505.19731, that is η/((1+η)τ) here, KL(π*_τ‖π_k) ≤ (1+2τ)^(−k) KL(π*_τ‖π_0)."""
    target, policy = equilibrium(CYC, TAU), CYC.reference
    start = float(kl(target, policy))
    assert start == pytest.approx(0.105543, abs=1e-6)
    step_eta = 2 / (1 + 2 * TAU)
    for _ in range(10):
        policy = extragradient_step(CYC, policy, TAU, step_eta)
    assert float(kl(target, policy)) == pytest.approx(0.001345, abs=1e-6)
    assert float(kl(target, policy)) <= (1 + 2 * TAU) ** -10 * start == pytest.approx(0.017046, abs=1e-6)


# Proximal points


@pytest.mark.parametrize(("eta", "expected"), [(0.2, 0.130187), (1.0, 0.031022), (10.0, 0.000617)])
def test_a_proximal_point_is_the_zero_of_its_penalised_self_play(eta: float, expected: float) -> None:
    """π_{k+1} is the equilibrium at τ/θ with the reference μ^θ π_k^(1−θ), θ = η/(1+η), and KL falls by 1/(1+η)."""
    anchor = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    theta = eta / (1 + eta)
    reference = geometric_mixture(anchor, CYC.reference, theta)
    solved = equilibrium(Game(CYC.preferences, reference, CYC.actions), TAU / theta)
    target = equilibrium(CYC, TAU)
    assert float(kl(target, anchor)) == pytest.approx(0.197806, abs=1e-6)
    assert float(kl(target, solved)) == pytest.approx(expected, abs=1e-6)
    assert float(kl(target, solved)) <= float(kl(target, anchor)) / (1 + eta)
    logits = solved.log().requires_grad_()
    pi = logits.softmax(0)
    penalty = TAU * kl(pi, CYC.reference) + TAU / eta * kl(pi, anchor)
    (gradient,) = torch.autograd.grad(pi @ win_rates(CYC, solved) - penalty, logits)
    near(gradient, 0, 0, 0, atol=1e-9)


# Limits that all of them share


@pytest.mark.parametrize("game", [CYC, DICE])
def test_a_strong_penalty_leaves_only_the_reference(game: Game) -> None:
    for target in (equilibrium(game, 1e3), mixture_equilibrium(game, 1e3, 0.5), best_response(game, UNIFORM, 1e3)):
        assert_close(target, game.reference, rtol=0, atol=1e-3)


def test_with_two_actions_every_opponent_gives_the_same_answer() -> None:
    table = torch.tensor([[0.5, 0.7], [0.3, 0.5]], dtype=torch.float64)
    game = Game(table, torch.tensor([0.2, 0.8], dtype=torch.float64), ("a", "b"))
    nash = equilibrium(game, TAU)
    for opponent in (game.reference, nash, torch.tensor([0.9, 0.1], dtype=torch.float64)):
        assert_close(best_response(game, opponent, TAU), nash)


def test_small_rewards_make_the_equilibrium_rlhf_at_four_times_the_penalty() -> None:
    for scale, expected in ((1.0, 0.01436), (0.1, 1.376e-4), (0.01, 1.375e-6)):
        rewards = scale * torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
        table = torch.sigmoid(rewards[:, None] - rewards[None, :])
        game = Game(table, CYC.reference, ("a", "b", "c"))
        kl_tau = 0.1 * scale
        rlhf = (game.reference.log() + rewards / (4 * kl_tau)).softmax(0)
        assert float((equilibrium(game, kl_tau) - rlhf).abs().max()) == pytest.approx(expected, rel=2e-3)
