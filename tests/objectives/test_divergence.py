import torch
from torch.testing import assert_close

from alignrun.objectives.divergence import kl_k1, kl_k2, kl_k3, suffix_sum


def test_estimators_of_one_log_ratio() -> None:
    log_ratio = torch.tensor([0.0, 1.0, -2.0])
    assert_close(kl_k1(log_ratio), torch.tensor([0.0, 1.0, -2.0]))
    assert_close(kl_k2(log_ratio), torch.tensor([0.0, 0.5, 2.0]))
    assert_close(kl_k3(log_ratio), torch.tensor([0.0, 0.36787944, 4.3890561]))


def test_k3_keeps_its_digits_near_zero() -> None:
    assert_close(kl_k3(torch.tensor([1e-3])), torch.tensor([4.99833375e-7]), rtol=1e-3, atol=0)


def test_suffix_sum_counts_the_token_itself_and_skips_what_is_masked() -> None:
    x = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, float("nan")], [1.0, 2.0, 4.0, 8.0]])
    mask = torch.tensor([[True] * 4, [True, True, True, False], [False, True, False, True]])
    expected = torch.tensor([[15.0, 14.0, 12.0, 8.0], [7.0, 6.0, 4.0, 0.0], [10.0, 10.0, 8.0, 8.0]])
    assert_close(suffix_sum(x, mask), expected)


def test_suffix_sum_is_differentiable() -> None:
    x = torch.ones(1, 3, requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    (gradient,) = torch.autograd.grad(suffix_sum(x, mask).sum(), x)
    assert_close(gradient, torch.tensor([[1.0, 2.0, 0.0]]))
