"""The Nash policy gradient and the KL estimators, by enumerating every outcome of a small game.

Expected numbers come from an independent numpy implementation with finite differences.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from alignrun.games import CYC, geometric_mixture, kl
from alignrun.generation.mixture import mix_log_probs
from alignrun.objectives.divergence import kl_k1, kl_k2, kl_k3, suffix_sum
from alignrun.objectives.nash import policy_gradient_loss, suffix_advantages

P = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
MU = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def near(actual: Tensor, *expected: float, atol: float = 1e-6) -> None:
    assert_close(actual, torch.tensor(expected, dtype=torch.float64).reshape(actual.shape), rtol=0, atol=atol)


def mean_and_variance(estimates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [K] and the total variance of gradient estimates [outcomes, K] under their probabilities."""
    mean = weights @ estimates
    return mean, weights @ (estimates - mean).square().sum(-1)


# One token: the three actions of a matrix game


def estimates_in_the_game(mix_beta: float, shift: tuple[float, ...] = (0.0, 0.0, 0.0)) -> tuple[Tensor, Tensor]:
    """The gradient estimate for every pair of actions, in the logits of the policy, and the pairs' probabilities.

    `shift` is added to the preference, one number for each action of the opponent.
    """
    logits = P.log().requires_grad_()
    opponent = mix_log_probs(logits.detach(), MU.log(), mix_beta).exp()
    mask = torch.ones(1, 1, dtype=torch.bool)
    estimates, weights = [], []
    for y in range(3):
        for other in range(3):
            log_prob = logits.log_softmax(-1)[y].reshape(1, 1)
            preference = CYC.preferences[y, other, None] + shift[other]
            advantages = suffix_advantages(preference, 0.1 * (log_prob - MU[y].log()), mask)
            loss = policy_gradient_loss(log_prob, advantages, mask)
            estimates.append(-torch.autograd.grad(loss, logits)[0])
            weights.append(P[y] * opponent[other])
    return torch.stack(estimates), torch.stack(weights)


@pytest.mark.parametrize(("shift", "variance"), [(0.0, 0.04172), (0.5, 0.20229)])
def test_the_gradient_is_unbiased_and_the_baseline_only_lowers_its_variance(shift: float, variance: float) -> None:
    mean, total_variance = mean_and_variance(*estimates_in_the_game(mix_beta=0.25, shift=(shift,) * 3))
    near(mean, 0.033648, 0.016099, -0.049747)
    near(total_variance, variance, atol=5e-6)


def test_self_play_is_the_mixture_without_reference() -> None:
    mean, _ = mean_and_variance(*estimates_in_the_game(mix_beta=0.0))
    near(mean, 0.0278236, 0.0292466, -0.0570702, atol=1e-7)


def test_the_log_ratio_of_the_opponent_is_a_baseline() -> None:
    shift = tuple((0.1 * (P.log() - MU.log())).tolist())
    mean, total_variance = mean_and_variance(*estimates_in_the_game(mix_beta=0.0, shift=shift))
    near(mean, 0.0278236, 0.0292466, -0.0570702, atol=1e-7)
    near(total_variance, 0.04736, atol=5e-6)


# Two tokens out of a vocabulary of two

SEQUENCES = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
MASK = torch.ones(4, 2, dtype=torch.bool)
TAU = 0.3
EXACT = (-0.02680059, 0.02680059, -0.25520999, 0.25520999, 0.00095951, -0.00095951)
"""The gradient of P(π ≻ mixture) − τKL(π‖μ) in the six logits of the policy."""


class TwoTokens:
    """A policy and a reference over two tokens: logits of the first, then logits of the second for each first."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        policy = [rng.normal(size=2), rng.normal(size=(2, 2))]
        reference = [rng.normal(size=2), rng.normal(size=(2, 2))]
        draws = rng.random((4, 4))
        self.policy = torch.from_numpy(np.concatenate([part.ravel() for part in policy])).requires_grad_()
        self.reference = torch.from_numpy(np.concatenate([part.ravel() for part in reference]))
        lower = torch.from_numpy(draws).tril(-1)
        self.preferences = lower + (1 - lower.T).triu(1) + 0.5 * torch.eye(4, dtype=torch.float64)

    @staticmethod
    def token_log_probs(logits: Tensor) -> Tensor:
        """[4 sequences, 2 tokens] from the six logits."""
        first, second = logits[:2].log_softmax(-1), logits[2:].reshape(2, 2).log_softmax(-1)
        return torch.stack([first[SEQUENCES[:, 0]], second[SEQUENCES[:, 0], SEQUENCES[:, 1]]], dim=-1)

    def token_mixture(self, mix_beta: float) -> Tensor:
        """The distribution over the four sequences when every token is drawn from the mixture."""
        policy, reference = self.policy.detach().reshape(3, 2), self.reference.reshape(3, 2)
        return self.token_log_probs(mix_log_probs(policy, reference, mix_beta).flatten()).sum(-1).exp()

    def sequence_mixture(self, mix_beta: float) -> Tensor:
        policy = self.token_log_probs(self.policy.detach()).sum(-1)
        reference = self.token_log_probs(self.reference).sum(-1)
        return ((1 - mix_beta) * policy + mix_beta * reference).softmax(-1)

    def gradients(self, advantages: Tensor) -> Tensor:
        """The gradient estimate that each sequence gives, [4, 6]."""
        log_probs = self.token_log_probs(self.policy)
        losses: Iterator[Tensor] = (
            policy_gradient_loss(log_probs[[row]], advantages[[row]], MASK[[row]]) for row in range(4)
        )
        return torch.stack([-torch.autograd.grad(loss, self.policy, retain_graph=True)[0] for loss in losses])


@pytest.fixture
def tokens() -> TwoTokens:
    return TwoTokens()


def test_mixing_tokens_is_not_mixing_sequences(tokens: TwoTokens) -> None:
    mixture = tokens.token_mixture(0.5)
    near(mixture, 0.13473422, 0.66812561, 0.10696182, 0.09017834, atol=1e-8)
    near(0.5 * (mixture - tokens.sequence_mixture(0.5)).abs().sum(), 0.081854)
    for mix_beta in (0.0, 1.0):
        assert_close(tokens.token_mixture(mix_beta), tokens.sequence_mixture(mix_beta), rtol=0, atol=1e-15)


def test_the_sum_over_what_follows_is_exact_and_varies_less(tokens: TwoTokens) -> None:
    log_probs = tokens.token_log_probs(tokens.policy)
    log_ratio = log_probs - tokens.token_log_probs(tokens.reference)
    weights = log_probs.detach().sum(-1).exp()
    preference = tokens.preferences @ tokens.token_mixture(0.5)

    mean, variance = mean_and_variance(tokens.gradients(suffix_advantages(preference, TAU * log_ratio, MASK)), weights)
    near(mean, *EXACT, atol=2e-8)
    near(variance, 0.0455, atol=5e-5)

    whole = preference[:, None] - 0.5 - TAU * log_ratio.sum(-1, keepdim=True).expand(4, 2)
    mean, variance = mean_and_variance(tokens.gradients(whole), weights)
    near(mean, *EXACT, atol=2e-8)
    near(variance, 0.2135, atol=5e-5)


def test_a_token_s_own_log_ratio_alone_is_biased(tokens: TwoTokens) -> None:
    log_probs = tokens.token_log_probs(tokens.policy)
    log_ratio = log_probs - tokens.token_log_probs(tokens.reference)
    preference = tokens.preferences @ tokens.token_mixture(0.5)
    diagonal = preference[:, None] - 0.5 - TAU * log_ratio
    mean, _ = mean_and_variance(tokens.gradients(diagonal), log_probs.detach().sum(-1).exp())
    near((mean - torch.tensor(EXACT, dtype=torch.float64)).abs().max(), 0.00711, atol=5e-6)


def test_a_batch_sums_over_sequences(tokens: TwoTokens) -> None:
    log_probs = tokens.token_log_probs(tokens.policy)
    log_ratio = log_probs - tokens.token_log_probs(tokens.reference)
    preference = tokens.preferences @ tokens.token_mixture(0.5)
    advantages = suffix_advantages(preference, TAU * log_ratio, MASK)
    together = torch.autograd.grad(policy_gradient_loss(log_probs, advantages, MASK), tokens.policy)[0]
    assert_close(together, -tokens.gradients(advantages).sum(0), rtol=0, atol=1e-15)


def test_padding_has_no_part_in_advantages_and_loss() -> None:
    mask = torch.tensor([[True, True, False]])
    log_ratio = torch.tensor([[0.4, -0.1, float("nan")]], requires_grad=True)
    advantages = suffix_advantages(torch.tensor([0.8], requires_grad=True), 0.5 * log_ratio, mask)
    assert_close(advantages, torch.tensor([[0.15, 0.35, 0.0]]))
    assert not advantages.requires_grad

    log_probs = torch.tensor([[-1.0, -2.0, float("-inf")]], requires_grad=True)
    loss = policy_gradient_loss(log_probs, advantages, mask)
    assert_close(loss, torch.tensor(0.85))
    assert_close(torch.autograd.grad(loss, log_probs)[0], torch.tensor([[-0.15, -0.35, 0.0]]))


def test_no_gradient_passes_through_the_advantages() -> None:
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    (gradient,) = torch.autograd.grad(policy_gradient_loss(log_probs, log_probs * 3, mask), log_probs)
    assert_close(gradient, torch.tensor([[3.0, 6.0]]))


# Divergences


def test_the_mixture_is_held_fixed_in_the_divergence_to_it() -> None:
    logits = P.log().requires_grad_()
    mixture = mix_log_probs(logits, MU.log(), 0.3).exp()
    held, through = (
        torch.autograd.grad(kl(logits.softmax(-1), target), logits, retain_graph=True)[0]
        for target in (mixture.detach(), mixture)
    )
    near(held, -0.071471, -0.024740, 0.096211)
    near(through, -0.0160593, -0.01207119, 0.0281305, atol=1e-7)
    (towards_reference,) = torch.autograd.grad(kl(logits.softmax(-1), MU), logits)
    assert_close(held, 0.3 * towards_reference, rtol=0, atol=1e-15)
    assert_close(mixture.detach(), geometric_mixture(P, MU, 0.3), rtol=0, atol=1e-15)


def test_values_of_the_estimators() -> None:
    log_ratio = P.log() - MU.log()
    near(P @ kl_k1(log_ratio), 0.274887)
    near(P @ kl_k2(log_ratio), 0.293856)
    near(P @ kl_k3(log_ratio), 0.274887)
    assert (kl_k3(log_ratio) >= 0).all()


@pytest.mark.parametrize(
    ("estimator", "gradient"),
    [
        (kl_k1, (0.0, 0.0, 0.0)),
        (kl_k2, (-0.238236, -0.082466, 0.320702)),
        (kl_k3, (-0.3, 0.0, 0.3)),
    ],
)
def test_gradients_of_the_estimators_as_losses(
    estimator: Callable[[Tensor], Tensor], gradient: tuple[float, ...]
) -> None:
    logits = P.log().requires_grad_()
    loss = P @ estimator(logits.log_softmax(-1) - MU.log())
    near(torch.autograd.grad(loss, logits)[0], *gradient)


def test_k1_in_the_reward_has_the_gradient_of_the_divergence() -> None:
    logits = P.log().requires_grad_()
    log_probs = logits.log_softmax(-1)
    reward = kl_k1(log_probs.detach() - MU.log())
    near(torch.autograd.grad(P @ (log_probs * reward), logits)[0], -0.238236, -0.082466, 0.320702)


def test_suffix_estimator_of_the_divergence_is_exact(tokens: TwoTokens) -> None:
    log_probs = tokens.token_log_probs(tokens.policy)
    log_ratio = log_probs - tokens.token_log_probs(tokens.reference)
    weights = log_probs.sum(-1).exp()
    (exact,) = torch.autograd.grad(weights @ log_ratio.sum(-1), tokens.policy, retain_graph=True)
    rewards = suffix_sum(log_ratio.detach(), MASK)
    (estimate,) = torch.autograd.grad(weights.detach() @ (log_probs * rewards).sum(-1), tokens.policy)
    assert_close(estimate, exact, rtol=0, atol=1e-15)


def test_k2_as_a_loss_is_exact_for_whole_completions_and_not_for_their_tokens(tokens: TwoTokens) -> None:
    log_probs = tokens.token_log_probs(tokens.policy)
    log_ratio = log_probs - tokens.token_log_probs(tokens.reference)
    weights = log_probs.sum(-1).exp()
    (exact,) = torch.autograd.grad(weights @ log_ratio.sum(-1), tokens.policy, retain_graph=True)
    losses = (kl_k2(log_ratio.sum(-1)), kl_k2(log_ratio).sum(-1))
    whole, by_token = (
        torch.autograd.grad(weights.detach() @ loss, tokens.policy, retain_graph=True)[0] for loss in losses
    )
    assert_close(whole, exact, rtol=0, atol=1e-15)
    assert_close(by_token[2:], exact[2:], rtol=0, atol=1e-15)
    assert (by_token[:2] - exact[:2]).abs().max() > 0.01
