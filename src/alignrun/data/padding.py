"""Token ids of unequal lengths as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignrun.types import Completions, PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token. Padding is masked out, so any id will do if the tokenizer has none."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def pad(rows: Sequence[Ids], pad_id: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """The rows as one [N, longest] int64 tensor, and a mask [N, longest] bool that is true on their own tokens."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = True
    return ids, mask


def prompt_batch(texts: Sequence[str], rows: Sequence[Ids], pad_id: int) -> PromptBatch:
    """B prompts, padded on the left."""
    ids, mask = pad(rows, pad_id, left=True)
    return PromptBatch(tuple(texts), ids, mask.long())


def collate(
    heads: Sequence[Ids], tails: Sequence[Sequence[Ids]], texts: Sequence[str], pad_id: int
) -> tuple[PromptBatch, Completions]:
    """B prompts [B, P], padded on the left, and K completions of each [B, K, T], padded on the right."""
    tokens, mask = pad([tail for row in tails for tail in row], pad_id)
    shape = (len(heads), len(tails[0]))
    return prompt_batch(texts, heads, pad_id), Completions(tokens.unflatten(0, shape), mask.unflatten(0, shape))
