"""The parts of PPO against loops over tokens and closed forms."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from alignrun.objectives.divergence import suffix_sum
from alignrun.objectives.ppo import clipped_policy_loss, clipped_value_loss, generalised_advantages, whiten

MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


def random(seed: int) -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 0.95), (0.9, 0.5), (0.8, 0.0), (1.0, 1.0)])
def test_advantages_are_the_discounted_sum_of_errors(discount: float, trace: float) -> None:
    rewards, values = random(0), random(1)
    found = generalised_advantages(rewards, values, MASK, discount, trace)
    for b in range(3):
        length = int(MASK[b].sum())
        for n in range(length):
            total = 0.0
            for m in range(n, length):
                following = float(values[b, m + 1]) if m + 1 < length else 0.0
                error = float(rewards[b, m]) + discount * following - float(values[b, m])
                total += (discount * trace) ** (m - n) * error
            assert float(found[b, n]) == pytest.approx(total)
        assert found[b, length:].abs().sum() == 0


def test_without_discount_an_advantage_is_what_is_to_come_less_the_value() -> None:
    rewards, values = random(2), random(3)
    expected = torch.where(MASK, suffix_sum(rewards, MASK) - values, 0.0)
    assert_close(generalised_advantages(rewards, values, MASK, 1.0, 1.0), expected)


def test_whitening_is_over_the_tokens_of_the_mask_alone() -> None:
    values = random(4)
    white = whiten(values, MASK)
    assert_close(white, whiten(torch.where(MASK, values, 1e3), MASK))
    kept = white[MASK]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-12)
    assert float(kept.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert white[~MASK].abs().sum() == 0
    assert torch.isfinite(whiten(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))).all()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_the_surrogate_is_flat_where_the_step_has_gone_far_enough(
    ratio: float, advantage: float, expected: float, slope: float
) -> None:
    log_ratio = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    loss = clipped_policy_loss(log_ratio, torch.tensor([[advantage]], dtype=torch.float64), 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert float(loss.detach()) == pytest.approx(expected)
    assert float(gradient) == pytest.approx(slope)


@pytest.mark.parametrize(
    ("value", "expected", "slope"), [(0.1, 0.405, -0.9), (0.5, 0.32, 0.0), (-0.5, 1.125, -1.5), (1.5, 0.32, 0.0)]
)
def test_a_value_gains_nothing_beyond_the_clip(value: float, expected: float, slope: float) -> None:
    """V_old = 0, R = 1, ε = 0.2: the larger of the two errors counts."""
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    loss = clipped_value_loss(values, 0 * one, one, 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert float(loss.detach()) == pytest.approx(expected)
    assert float(gradient) == pytest.approx(slope)
