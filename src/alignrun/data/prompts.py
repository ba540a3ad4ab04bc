"""A fixed set of prompts, encoded once, from which the batch of any step can be had without any state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignrun.config import TooLong
from alignrun.data.order import rows_at
from alignrun.data.padding import padding_id, prompt_batch
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
        return cls(texts, token_ids, padding_id(tokenizer), seed, skipped=len(examples) - len(kept))

    def __len__(self) -> int:
        return len(self.texts)

    def batch_at(self, step: int, size: int, shift: int = 0) -> PromptBatch:
        """The batch of a step, a pure function of the seed and its arguments (see `rows_at`)."""
        return self._batch(rows_at(step, size, len(self), self.seed, shift))

    def all_batches(self, size: int) -> Iterator[PromptBatch]:
        """Every prompt once, in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self._batch(range(start, min(start + size, len(self))))

    def _batch(self, rows: Sequence[int]) -> PromptBatch:
        return prompt_batch([self.texts[row] for row in rows], [self.token_ids[row] for row in rows], self.pad_id)
