import pytest
import torch
from torch.testing import assert_close

from alignrun.errors import InputError
from alignrun.generation.mixture import mix_log_probs

NEVER = -torch.inf


def test_the_mixture_of_two_distributions() -> None:
    policy = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    mixed = mix_log_probs(policy + 3.0, reference - 2.0, 0.1)
    expected = torch.tensor([0.22471666, 0.30756190, 0.46772144], dtype=torch.float64)
    assert_close(mixed.exp(), expected, rtol=0, atol=1e-8)


def test_the_ends_are_exactly_one_side() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(2, 5, 7, generator=generator) * 10 for _ in range(2))
    policy[0, 0, 3], reference[0, 0, 4] = NEVER, NEVER
    assert torch.equal(mix_log_probs(policy, reference, 0.0), policy.log_softmax(-1))
    assert torch.equal(mix_log_probs(policy, reference, 1.0), reference.log_softmax(-1))


@pytest.mark.parametrize("mix_beta", [0.0, 0.125, 0.5, 1.0])
def test_a_forbidden_token_makes_no_nan(mix_beta: float) -> None:
    policy, reference = torch.tensor([0.0, NEVER, 1.0, NEVER]), torch.tensor([NEVER, 0.0, 1.0, NEVER])
    mixed = mix_log_probs(policy, reference, mix_beta)
    assert not mixed.isnan().any()
    assert_close(mixed.exp().sum(), torch.tensor(1.0))
    assert mixed[3] == NEVER
    if 0 < mix_beta < 1:
        assert_close(mixed, torch.tensor([NEVER, NEVER, 0.0, NEVER]))


def test_half_precision_logits_are_mixed_in_float32() -> None:
    policy, reference = torch.randn(2, 9, generator=torch.Generator().manual_seed(1)).bfloat16()
    for mix_beta in (0.0, 0.5, 1.0):
        mixed = mix_log_probs(policy, reference, mix_beta)
        assert mixed.dtype == torch.float32
        assert_close(mixed, mix_log_probs(policy.float(), reference.float(), mix_beta), rtol=0, atol=0)


@pytest.mark.parametrize("mix_beta", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_the_unit_interval_is_refused(mix_beta: float) -> None:
    with pytest.raises(InputError, match="mix_beta must lie in"):
        mix_log_probs(torch.zeros(3), torch.zeros(3), mix_beta)
