import random
from typing import Any

import pytest
import torch

from alignrun.data.padding import collate, pad, padding_id


def test_left_and_right() -> None:
    ids, mask = pad([[1, 2, 3], [4]], 9)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    ids, mask = pad([[1, 2, 3], [4]], 9, left=True)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


def test_empty_rows() -> None:
    for left in (False, True):
        ids, mask = pad([[], [4]], 9, left=left)
        assert (ids.tolist(), mask.tolist()) == ([[9], [4]], [[False], [True]])
        ids, mask = pad([[]], 9, left=left)
        assert (ids.shape, ids.dtype, mask.shape) == ((1, 0), torch.int64, (1, 0))


@pytest.mark.parametrize("seed", range(20))
def test_collate_loses_nothing(seed: int) -> None:
    dice = random.Random(seed)

    def ids() -> list[int]:
        return [dice.randrange(5) for _ in range(dice.randint(1, 6))]  # the padding id among them

    size, count = dice.randint(1, 4), dice.randint(1, 3)
    heads, tails = [ids() for _ in range(size)], [[ids() for _ in range(count)] for _ in range(size)]
    prompts, completions = collate(heads, tails, [f"text {row}" for row in range(size)], pad_id=0)
    assert prompts.texts == tuple(f"text {row}" for row in range(size))
    assert prompts.input_ids.dtype == prompts.attention_mask.dtype == completions.tokens.dtype == torch.int64
    assert completions.mask.dtype == torch.bool
    assert (
        completions.tokens.shape == completions.mask.shape == (size, count, max(len(t) for row in tails for t in row))
    )
    assert prompts.input_ids.shape == prompts.attention_mask.shape == (size, max(map(len, heads)))
    for row in range(size):
        real = prompts.attention_mask[row].bool()
        assert prompts.input_ids[row, real].tolist() == heads[row]
        assert bool(real[-1])
        assert real.tolist() == sorted(real.tolist())
        for place in range(count):
            real = completions.mask[row, place]
            assert completions.tokens[row, place, real].tolist() == tails[row][place]
            assert real.tolist() == sorted(real.tolist(), reverse=True)


def test_padding_id(plain_tokenizer: Any) -> None:
    plain_tokenizer.pad_token = "<|im_start|>"
    assert padding_id(plain_tokenizer) == 2
    plain_tokenizer.pad_token = None
    assert padding_id(plain_tokenizer) == 0
