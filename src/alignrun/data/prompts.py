"""A fixed set of prompts, encoded once, from which the batch of any step can be had without any state."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from alignrun.config import TooLong
from alignrun.data.templates import encode_prompt
from alignrun.errors import InputError
from alignrun.types import Example, PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MEND = "a smaller generation.max_new_tokens, or another data.max_prompt_tokens"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts as text and as token ids, in the order of the data set."""

    texts: tuple[str, ...]
    """The prompts as readers and preferences see them."""
    token_ids: tuple[tuple[int, ...], ...]
    pad_id: int
    seed: int
    skipped: int
    """Prompts left out because they were too long."""

    @classmethod
    def build(
        cls,
        examples: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        *,
        system_prompt: str | None,
        max_tokens: int,
        too_long: TooLong,
        seed: int,
    ) -> PromptSet:
        """Encode every prompt. Raises InputError for one of more than `max_tokens` tokens, or, where those are
        skipped, if none is left."""
        kept: list[tuple[str, tuple[int, ...]]] = []
        for example in examples:
            ids = encode_prompt(tokenizer, example, system_prompt)
            if len(ids) <= max_tokens:
                kept.append((example.text, tuple(ids)))
            elif too_long is TooLong.error:
                raise InputError(
                    f"data: {example.origin}: the prompt has {len(ids)} tokens, and the limit is {max_tokens}; "
                    f"set data.too_long=skip, {_MEND}"
                )
        if not kept:
            raise InputError(
                f"data: none of the {len(examples)} prompts fits into the limit of {max_tokens} tokens; set {_MEND}"
            )
        texts, token_ids = zip(*kept, strict=True)
        # Padding is masked out, so that any id will do where the tokenizer names none.
        pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return cls(texts, token_ids, pad_id, seed, skipped=len(examples) - len(kept))

    def __len__(self) -> int:
        return len(self.texts)

    def batch_at(self, step: int, size: int) -> PromptBatch:
        """Rows [step·size, (step + 1)·size) of the endless stream of epochs, each in an order of its own.

        A pure function of the seed and its arguments, so that a resumed run goes on where it stopped. Every prompt
        comes once in an epoch; a batch may reach over several.
        """
        places = (divmod(place, len(self)) for place in range(step * size, (step + 1) * size))
        return self._batch([_order(len(self), self.seed, epoch)[offset] for epoch, offset in places])

    def all_batches(self, size: int) -> Iterator[PromptBatch]:
        """Every prompt once, in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self._batch(range(start, min(start + size, len(self))))

    def _batch(self, rows: Sequence[int]) -> PromptBatch:
        longest = max(len(self.token_ids[row]) for row in rows)
        input_ids = torch.full((len(rows), longest), self.pad_id)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            ids = torch.tensor(self.token_ids[row])
            input_ids[index, longest - len(ids) :] = ids
            attention_mask[index, longest - len(ids) :] = 1
        return PromptBatch(tuple(self.texts[row] for row in rows), input_ids, attention_mask)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    # Seeding with text keeps (seed 1, epoch 2) apart from (seed 2, epoch 1), and leaves the global generators alone.
    order = list(range(count))
    random.Random(f"prompts {seed} {epoch}").shuffle(order)
    return tuple(order)
