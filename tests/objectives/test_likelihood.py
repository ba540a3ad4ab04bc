from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from alignrun.objectives.likelihood import token_log_probs

N, D, V = 30, 4, 50


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def plain_log_probs(hidden: Tensor, head: nn.Module, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """The same from all the logits at once."""
    log_probs = torch.log_softmax(head(hidden).float() / temperature, dim=-1)
    return log_probs.gather(-1, targets[..., None]).squeeze(-1)


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    return hidden, nn.Linear(D, V, dtype=dtype), torch.randint(V, (N,)), torch.randn(N, dtype=dtype)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_size", [1, 7, N - 1, N, 1000])
def test_values_and_gradients_equal_those_of_all_logits(chunk_size: int, temperature: float, trained: bool) -> None:
    hidden, head, targets, weights = problem()
    head.requires_grad_(trained)
    scores = torch.log_softmax(head(hidden) / temperature, dim=-1)[torch.arange(N), targets]
    chunked = token_log_probs(hidden, head, targets, temperature=temperature, chunk_size=chunk_size)
    assert chunked.dtype == torch.float64
    assert_close(chunked, scores, rtol=1e-13, atol=1e-13)

    inputs = (hidden, head.weight, head.bias) if trained else (hidden,)
    expected = torch.autograd.grad((scores * weights).sum(), inputs)
    assert_close(torch.autograd.grad((chunked * weights).sum(), inputs), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("trained", "runs"), [(True, 2), (False, 1)])
def test_a_frozen_head_runs_once_for_a_step(trained: bool, runs: int) -> None:
    hidden, linear, targets, weights = problem()
    linear.requires_grad_(trained)
    positions: list[int] = []

    def head(hidden: Tensor) -> Tensor:
        positions.append(len(hidden))
        logits: Tensor = torch.tanh(linear(hidden) / 3) * 3  # as some families cap them
        return logits

    log_probs = token_log_probs(hidden, head, targets, chunk_size=7)
    gradient = torch.autograd.grad((log_probs * weights).sum(), hidden)
    assert sum(positions) == runs * N
    expected = torch.log_softmax(head(hidden), dim=-1)[torch.arange(N), targets]
    assert_close(gradient, torch.autograd.grad((expected * weights).sum(), hidden), rtol=1e-12, atol=1e-12)


def test_values_are_the_same_to_the_last_bit_with_gradients_and_without() -> None:
    hidden, head, targets, _ = problem(torch.float32)
    head.requires_grad_(False)
    with torch.no_grad():
        expected = token_log_probs(hidden, head, targets, temperature=0.7)
    assert torch.equal(token_log_probs(hidden, head, targets, temperature=0.7), expected)


def test_log_probs_of_known_logits() -> None:
    hidden = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2]], dtype=torch.float64).log()
    targets = torch.tensor([2, 1])
    assert_close(token_log_probs(hidden, lambda h: h, targets).exp(), torch.tensor([0.5, 0.3], dtype=torch.float64))
    # At temperature ½ probabilities are squared: .25/.38 and .09/.38.
    cold = token_log_probs(hidden, lambda h: h, targets, temperature=0.5).exp()
    assert_close(cold, torch.tensor([0.6578947368, 0.2368421053], dtype=torch.float64))


def test_sequences_keep_their_shape() -> None:
    hidden, head, targets, _ = problem()
    batched = token_log_probs(hidden.reshape(5, 6, D), head, targets.reshape(5, 6), chunk_size=4)
    assert_close(batched, token_log_probs(hidden, head, targets).reshape(5, 6))
    assert token_log_probs(hidden[:0], head, targets[:0]).shape == (0,)
    with pytest.raises(ValueError, match="not of the same positions"):
        token_log_probs(hidden.reshape(5, 6, D), head, targets.reshape(6, 5))


@pytest.mark.parametrize("trained", [True, False])
def test_bfloat16_logits_are_summed_in_float32(trained: bool) -> None:
    hidden, head, targets, weights = problem(torch.bfloat16)
    head.requires_grad_(trained)
    chunked = token_log_probs(hidden, head, targets, chunk_size=7)
    expected = plain_log_probs(hidden, head, targets)
    assert chunked.dtype == torch.float32
    assert_close(chunked, expected, rtol=1e-6, atol=1e-6)

    weights = weights.float()
    inputs = (hidden, head.weight) if trained else (hidden,)
    gradients = torch.autograd.grad((chunked * weights).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}
    # The chunks' shares of the weight gradient are added up in bfloat16, of 8 significant bits.
    assert_close(gradients, expected_gradients, rtol=2**-6, atol=2**-6)


class LargestOutput(TorchDispatchMode):
    """Records the most elements that any tensor made under it has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("trained", [True, False])
def test_no_tensor_holds_the_logits_of_all_positions(trained: bool) -> None:
    hidden, head, targets, _ = problem()
    head.requires_grad_(trained)
    with LargestOutput() as plain:
        plain_log_probs(hidden, head, targets).sum().backward()
    assert plain.elements >= N * V  # the recorder sees them where they are
    with LargestOutput() as forward:
        log_probs = token_log_probs(hidden, head, targets, chunk_size=7)
    with LargestOutput() as backward:
        log_probs.sum().backward()
    assert forward.elements == 7 * V
    assert backward.elements == (7 * V if trained else N * D)


@pytest.mark.parametrize("trained", [True, False])
def test_logits_are_not_kept_for_the_backward_pass(trained: bool) -> None:
    hidden, head, targets, _ = problem()
    head.requires_grad_(trained)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        token_log_probs(hidden, head, targets, chunk_size=7)
    assert max(kept, default=0) < 7 * V


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_never_changes_a_value(padding: str) -> None:
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).double().eval()
    rows = [torch.randint(1, V, (length,)) for length in (5, 9, 3)]
    width = 11
    ids, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), width) if padding == "left" else slice(0, len(tokens))
        ids[row, place], mask[row, place] = tokens, 1

    def log_probs(ids: Tensor, mask: Tensor) -> Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        hidden = model.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        return token_log_probs(hidden[:, :-1], model.lm_head, ids[:, 1:], chunk_size=4)

    padded = log_probs(ids, mask)
    for row, tokens in enumerate(rows):
        alone = log_probs(tokens[None], torch.ones(1, len(tokens), dtype=torch.long))[0]
        valid = (mask[row, 1:] * mask[row, :-1]).bool()
        assert_close(padded[row, valid], alone, rtol=0, atol=1e-12)
