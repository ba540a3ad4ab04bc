"""MTPO in tables: mirror descent with Q-functions solves a preference between conversations with a random user."""

import torch
from torch import Tensor

from alignrun.games import Game, equilibrium

TAU, ETA = 0.2, 1.0
ACTIONS, REPLIES = 3, 2


def random_game(seed: int, replies: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P between conversations (y¹, u, y²) [n, m, n, n, m, n], the user U(u|y¹) [n, m], μ¹ [n] and μ² [n, m, n]."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    size = ACTIONS * replies * ACTIONS
    noise = draw(size, size)
    preferences = (0.5 + (noise - noise.T) / 2).reshape((ACTIONS, replies, ACTIONS) * 2)
    user, first, second = (draw(*shape) for shape in ((ACTIONS, replies), (ACTIONS,), (ACTIONS, replies, ACTIONS)))
    return preferences, user / user.sum(1, keepdim=True), first / first.sum(), second / second.sum(2, keepdim=True)


def wins(preferences: Tensor, user: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """[n, m, n] P(c ≻ c') over the conversations of a policy."""
    met = first[:, None, None] * user[:, :, None] * second
    return torch.einsum("abcxyz,xyz->abc", preferences, met)


def solve(preferences: Tensor, user: Tensor, *reference: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """π(y|·) ∝ μ^(ητ) π^(1−ητ) exp(ηQ), Q(y²) = P(c ≻ π) and Q(y¹) = E[Q(y²) − τ log π/μ(y²)], from μ."""
    first, second = reference
    for _ in range(steps):
        late = wins(preferences, user, first, second)
        rest = (second * (late - TAU * (second / reference[1]).log())).sum(2)
        early = (user * rest).sum(1)
        first, second = (
            torch.softmax(ETA * TAU * mu.log() + (1 - ETA * TAU) * pi.log() + ETA * q, -1)
            for mu, pi, q in zip(reference, (first, second), (early, late), strict=True)
        )
    return first, second


def half_gap(preferences: Tensor, user: Tensor, policy: tuple[Tensor, Tensor], *reference: Tensor) -> float:
    """max_π' P_τ(π' ≻ π) − ½ by backward induction: log-sums of exponentials instead of any iterate."""
    late = wins(preferences, user, *policy)
    rest = TAU * torch.logsumexp(reference[1].log() + late / TAU, 2)
    best = TAU * torch.logsumexp(reference[0].log() + (user * rest).sum(1) / TAU, 0)
    first, second = policy
    drift = (second * (second / reference[1]).log()).sum(2)
    kl = (first * ((first / reference[0]).log() + (user * drift).sum(1))).sum()
    return float(best + TAU * kl - 0.5)


def test_mirror_descent_leaves_nothing_to_gain_by_backward_induction() -> None:
    for seed in range(3):
        preferences, user, *reference = random_game(seed, REPLIES)
        assert half_gap(preferences, user, (reference[0], reference[1]), *reference) > 0.003
        policy = solve(preferences, user, *reference, steps=300)
        assert abs(half_gap(preferences, user, policy, *reference)) < 1e-12


def test_with_one_reply_it_is_the_matrix_game_between_conversations() -> None:
    preferences, user, *reference = random_game(4, 1)
    joint = (reference[0][:, None] * reference[1][:, 0]).flatten()
    game = Game(preferences.reshape(len(joint), -1), joint, tuple(map(str, range(len(joint)))))
    first, second = solve(preferences, user, *reference, steps=300)
    torch.testing.assert_close((first[:, None] * second[:, 0]).flatten(), equilibrium(game, TAU), rtol=0, atol=1e-9)
