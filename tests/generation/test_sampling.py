import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.testing import assert_close

from alignrun.generation.sampling import BLOCK, sample, truncate

NEVER = -torch.inf
BELOW_ONE = 1 - 2**-53


def log(*probs: float) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def uniform(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Truncation


def test_defaults_change_nothing() -> None:
    log_probs = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert torch.equal(truncate(log_probs, temperature=1.0, top_k=0, top_p=1.0), log_probs)
    assert_close(truncate(log_probs, top_k=8), log_probs)
    assert_close(truncate(log_probs, top_k=99), log_probs)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 0.5}, (0.04 / 0.3, 0.01 / 0.3, 0.16 / 0.3, 0.09 / 0.3)),
        ({"top_k": 1}, (0, 0, 1, 0)),
        ({"top_k": 2}, (0, 0, 4 / 7, 3 / 7)),
        ({"top_p": 1e-9}, (0, 0, 1, 0)),
        ({"top_p": 0.39}, (0, 0, 1, 0)),
        ({"top_p": 0.41}, (0, 0, 4 / 7, 3 / 7)),
        ({"top_p": 0.71}, (2 / 9, 0, 4 / 9, 3 / 9)),
        ({"top_p": 0.91}, (0.2, 0.1, 0.4, 0.3)),
        # After top_k the rest holds 4/9, 3/9, 2/9 of the probability, and 0.75 needs only the first two.
        ({"top_k": 3, "top_p": 0.75}, (0, 0, 4 / 7, 3 / 7)),
        # The temperature comes first: .16/.3 alone holds one half, where .4 did not.
        ({"temperature": 0.5, "top_p": 0.5}, (0, 0, 1, 0)),
    ],
)
def test_what_is_kept(options: dict[str, float], expected: tuple[float, ...]) -> None:
    log_probs = log(0.2, 0.1, 0.4, 0.3)
    kept = truncate(log_probs, **options)
    assert_close(kept.exp(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(log_probs, log(0.2, 0.1, 0.4, 0.3))


def test_ties_go_to_the_lower_token() -> None:
    flat = torch.zeros(2, 1000).log_softmax(-1)
    assert truncate(flat, top_k=3).isfinite().nonzero()[:, 1].tolist() == [0, 1, 2, 0, 1, 2]
    assert truncate(flat, top_p=0.0025).isfinite().nonzero()[:, 1].tolist() == [0, 1, 2, 0, 1, 2]


def test_top_k_alone_keeps_unlikely_tokens() -> None:
    assert truncate(torch.tensor([0.0, -60.0, -70.0]), top_k=2).isfinite().tolist() == [True, True, False]


def test_forbidden_tokens_stay_forbidden() -> None:
    log_probs = torch.tensor([NEVER, 0.25, NEVER, 0.75]).log_softmax(-1)
    for options in ({"temperature": 2.0}, {"top_k": 3}, {"top_p": 0.999}):
        kept = truncate(log_probs, **options)
        assert kept.isfinite().tolist() == [False, True, False, True]
        assert_close(kept.exp().sum(), torch.tensor(1.0))


# Sampling


def test_the_inverse_of_the_distribution_function() -> None:
    row = log(0.25, 0.5, 0.25)
    draws = uniform(0, 0.125, 0.2499, 0.25, 0.5, 0.7499, 0.75, 0.9, BELOW_ONE)
    assert sample(row.expand(9, 3), draws).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert sample(row[None], uniform(0.3)).dtype == torch.int64


def test_a_row_need_not_sum_to_one() -> None:
    assert sample(log(0.3, 0.1, 0.2).expand(3, 3), uniform(0.45, 0.55, 0.7)).tolist() == [0, 1, 2]


def test_a_row_of_nan_gives_a_valid_token() -> None:
    broken = torch.tensor([[torch.nan, 0.0], [NEVER, NEVER]])
    assert (sample(broken, uniform(0.0, 0.5)) < 2).all()


def test_a_grid_of_numbers_draws_each_token_in_proportion() -> None:
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = sample(log(0.201, 0, 0.3, 0.499).expand(1000, 4), draws)
    assert tokens.bincount(minlength=4).tolist() == [201, 0, 300, 499]
    assert (tokens.diff() >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("u", [0.0, 1e-300, 0.5, BELOW_ONE])
def test_no_token_of_probability_zero(u: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(200, 50, generator=generator).log_softmax(-1)
    log_probs[torch.rand(200, 50, generator=generator) < 0.8] = NEVER
    log_probs[:, [0, 49]] = NEVER
    log_probs[:, 25] = -1.0
    # Each row has another sum here, over which u is spread.
    tokens = sample(log_probs.to(dtype), torch.full((200,), u, dtype=torch.float64))
    assert log_probs[torch.arange(200), tokens].isfinite().all()
    allowed = log_probs.isfinite().long()
    if u == 0:
        assert torch.equal(tokens, allowed.argmax(-1))
    if u == BELOW_ONE:
        assert torch.equal(tokens, 49 - allowed.flip(-1).argmax(-1))


def test_rounding_of_the_cumulative_sum_cannot_reach_a_forbidden_token(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.Tensor.cumsum

    def rounded_up(self: Tensor, dim: int) -> Tensor:
        """A sum that gains a unit in the last place at token 1, as one may that is computed in parallel."""
        return exact(self, dim) + 2**-53 * (torch.arange(self.shape[dim]) == 1)

    monkeypatch.setattr(torch.Tensor, "cumsum", rounded_up)
    assert sample(log(0.5, 0, 0.5)[None], uniform(0.5)).item() == 2
    several_blocks = torch.full((1, 3 * BLOCK), NEVER)
    several_blocks[0, [0, 2 * BLOCK + 7]] = 0.0
    assert sample(several_blocks.log_softmax(-1), uniform(0.5)).item() == 2 * BLOCK + 7


def test_blocks_change_no_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = (3 * torch.randn(100, 3 * BLOCK + 5, generator=generator)).log_softmax(-1)
    draws = torch.rand(100, generator=generator, dtype=torch.float64)
    sums = log_probs.double().exp().cumsum(-1)
    expected = (sums > draws[:, None] * sums[:, -1:]).long().argmax(-1)
    assert torch.equal(sample(log_probs, draws), expected)


def test_a_draw_does_not_depend_on_the_other_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(16, 300, generator=generator).log_softmax(-1)
    uniforms = torch.rand(16, dtype=torch.float64, generator=generator)
    together = sample(log_probs, uniforms)
    alone = torch.cat([sample(log_probs[[row]], uniforms[[row]]) for row in range(16)])
    order = torch.randperm(16, generator=generator)
    assert torch.equal(together, alone)
    assert torch.equal(sample(log_probs[order], uniforms[order]), together[order])


def test_frequencies_follow_the_probabilities() -> None:
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000))
    tokens = sample(torch.from_numpy(probs).log().expand(20_000, 4), uniforms)
    assert chisquare(tokens.bincount(minlength=4).numpy(), probs * 20_000).pvalue > 0.01


def test_a_model_s_logits_need_not_be_contiguous() -> None:
    logits = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    uniforms = uniform(0.1, 0.4, 0.6, 0.9)
    assert torch.equal(sample(logits[:, -1], uniforms), sample(logits[:, -1].contiguous(), uniforms))
