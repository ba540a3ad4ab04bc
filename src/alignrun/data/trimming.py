"""Removes padding that a part of a batch does not need."""

from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from alignrun.types import Completions, PairBatch, PromptBatch

Batch = TypeVar("Batch")


def trim(batch: Batch) -> Batch:
    """A batch of pairs on the CPU without columns that are padding in all rows; other batches unchanged.

    If a batch is first split into micro-batches of similar length, most padding is never computed.
    """
    if not isinstance(batch, PairBatch):
        return batch
    prompts, completions = batch.prompts, batch.completions
    width, length = _longest(prompts.attention_mask), _longest(completions.mask)
    start = prompts.input_ids.shape[1] - width
    return replace(
        batch,
        prompts=PromptBatch(prompts.texts, prompts.input_ids[:, start:], prompts.attention_mask[:, start:]),
        completions=Completions(completions.tokens[..., :length], completions.mask[..., :length]),
    )


def _longest(mask: Tensor) -> int:
    return int(mask.sum(-1).max())
