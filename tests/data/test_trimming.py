import random

import pytest
import torch

from alignrun.data.padding import collate
from alignrun.data.trimming import trim
from alignrun.types import PairBatch


def batch(heads: list[list[int]], tails: list[list[list[int]]]) -> PairBatch:
    texts = [str(head) for head in heads]
    return PairBatch(*collate(heads, tails, texts, pad_id=0), labels=torch.arange(len(heads)) / 4)


@pytest.mark.parametrize("seed", range(10))
def test_a_trimmed_part_is_what_its_rows_alone_collate_to(seed: int) -> None:
    dice = random.Random(seed)
    ids = [[[dice.randrange(3) for _ in range(dice.randint(1, 8))] for _ in range(3)] for _ in range(4)]
    whole = batch([row[0] for row in ids], [row[1:] for row in ids])
    alone = batch([row[0] for row in ids[:2]], [row[1:] for row in ids[:2]])
    part = PairBatch(
        type(whole.prompts)(whole.prompts.texts[:2], whole.prompts.input_ids[:2], whole.prompts.attention_mask[:2]),
        type(whole.completions)(whole.completions.tokens[:2], whole.completions.mask[:2]),
        whole.labels[:2],
    )
    trimmed = trim(part)
    assert trimmed.prompts.texts == alone.prompts.texts
    for ours, theirs in (
        (trimmed.prompts.input_ids, alone.prompts.input_ids),
        (trimmed.prompts.attention_mask, alone.prompts.attention_mask),
        (trimmed.completions.tokens, alone.completions.tokens),
        (trimmed.completions.mask, alone.completions.mask),
        (trimmed.labels, alone.labels),
    ):
        assert torch.equal(ours, theirs)


def test_other_batches_are_left_alone() -> None:
    prompts, _ = collate([[1]], [[[2]]], ["a"], pad_id=0)
    assert trim(prompts) is prompts
