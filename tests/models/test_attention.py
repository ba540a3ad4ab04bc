"""Attention in half precision on a CPU: the right values and gradients, and only there another function than the
library's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from transformers.integrations import sdpa_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alignrun.models import attention
from alignrun.models.attention import attend, install

ROWS, HEADS, KEY_HEADS, SIZE = 3, 6, 2, 16
MODULE: Any = SimpleNamespace(num_key_value_groups=HEADS // KEY_HEADS, is_causal=True)


def states(queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries)
    shapes = [(ROWS, HEADS, queries, SIZE), *[(ROWS, KEY_HEADS, keys, SIZE)] * 2]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def by_hand(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scaling: float) -> Tensor:
    """softmax(q·kᵀ·scaling)·v, one row and head after another, in float64."""
    result = torch.empty(ROWS, query.shape[2], HEADS, SIZE, dtype=torch.float64)
    for row in range(ROWS):
        for head in range(HEADS):
            one = head * KEY_HEADS // HEADS
            scores = query[row, head].double() @ key[row, one].double().T * scaling
            weights = scores.masked_fill(~allowed[row, 0], -torch.inf).softmax(-1)
            result[row, :, head] = weights @ value[row, one].double()
    return result


def mask_of(kind: str, queries: int, keys: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """The mask as a model passes it, and what it allows; the first row has padding on the left."""
    allowed = torch.ones(ROWS, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    if kind == "none":
        return None, allowed
    allowed[0, :, :, :2] = False
    allowed[0, :, :2, 0] = True  # padding attends to something
    return allowed if kind == "bool" else torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -6e4), allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (5, 5), (3, 7)])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_values_and_gradients_are_those_of_plain_attention(
    queries: int, keys: int, kind: str, dtype: torch.dtype
) -> None:
    if kind == "none" and 1 < queries < keys:
        kind = "bool"  # only a mask says where the queries are
    parts = states(queries, keys, dtype)
    mask, allowed = mask_of(kind, queries, keys, dtype)
    output, _ = attend(MODULE, *parts, mask, scaling=0.3)
    expected = by_hand(*parts, allowed, 0.3)
    assert output.dtype is dtype
    # The result is rounded once, and weights of a single query once before.
    torch.testing.assert_close(output.double(), expected, atol=1.5e-2, rtol=torch.finfo(dtype).eps)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = torch.autograd.grad(output, parts, direction)
    wanted = torch.autograd.grad(expected, parts, direction.double())
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).double().norm() <= 4 * torch.finfo(dtype).eps * other.double().norm() + 1e-5


def test_float32_is_the_librarys_function() -> None:
    """So that runs in float32 stay as they were, bit for bit."""
    for queries in (1, 5):
        parts = states(queries, 5, torch.float32)
        expected, _ = sdpa_attention.sdpa_attention_forward(MODULE, *parts, None, scaling=0.3)
        assert torch.equal(attend(MODULE, *parts, None, scaling=0.3)[0], expected)


def test_a_plans_tensors_go_to_the_librarys_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for a GPU pretends that its tensors are on a CPU, and must not count copies in float32."""
    seen: list[torch.dtype] = []
    library = attention.sdpa_attention_forward

    def watched(module: Any, query: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, None]:
        seen.append(query.dtype)
        found: tuple[Tensor, None] = library(module, query, *rest, **options)
        return found

    monkeypatch.setattr(attention, "sdpa_attention_forward", watched)
    parts = states(5, 5, torch.bfloat16)
    attend(MODULE, *parts, None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        attend(MODULE, *(torch.empty(part.shape, dtype=part.dtype) for part in parts), None)
    assert seen == [torch.float32, torch.bfloat16]


def test_models_of_this_process_use_it() -> None:
    install()
    assert ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", lambda: None) is attend
