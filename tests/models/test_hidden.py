"""Reading texts: with and without a mask, and with each prompt read once."""

from dataclasses import replace

import pytest
import torch
from helpers import load_policy, random_batch

from alignrun.models.hidden import masked
from alignrun.types import Completions, PromptBatch, Role


@torch.no_grad()
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_padding_no_mask_is_needed(attention: str, copies: int) -> None:
    policy, _ = load_policy(f"model.attention={attention}")
    prompts, completions = random_batch(policy, prompts=4)
    full = PromptBatch(prompts.texts, prompts.input_ids, torch.ones_like(prompts.attention_mask))
    assert not full.padded
    repeated = Completions(*(part.repeat_interleave(copies, 0) for part in (completions.tokens, completions.mask)))
    found = policy.log_probs(Role.policy, full, repeated)
    with_mask = policy.log_probs(Role.policy, replace(full, padded=True), repeated)
    torch.testing.assert_close(found, with_mask, atol=1e-5, rtol=1e-5)


def test_a_batch_knows_whether_it_is_padded() -> None:
    policy, _ = load_policy()
    prompts, _ = random_batch(policy)
    assert prompts.padded
    assert replace(prompts, attention_mask=torch.ones_like(prompts.attention_mask)).padded, "said once"


def test_layers_that_see_a_window_get_the_mask_that_transformers_makes_of_it() -> None:
    policy, _ = load_policy()
    prompts, _ = random_batch(policy)
    own, _ = masked(policy.model, prompts.attention_mask, padded=True)
    assert own is not None
    assert own.shape == (3, 1, 6, 6)
    policy.model.config.sliding_window = 4
    left, positions = masked(policy.model, prompts.attention_mask, padded=True)
    assert left is prompts.attention_mask
    assert positions is not None
