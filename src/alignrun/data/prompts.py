"""A fixed set of prompts, encoded once, from which the batch of any step can be had without any state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignrun.config import BadRows, TooLong
from alignrun.data.drawn import column, select
from alignrun.data.order import rows_at
from alignrun.data.padding import padding_id, prompt_batch
from alignrun.data.rendering import Renderer
from alignrun.errors import InputError
from alignrun.types import Example, PromptBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHANGE = "a smaller generation.max_new_tokens, or another data.max_prompt_tokens"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts as text and as token ids, in the order of the data set."""

    texts: Sequence[str]
    """The prompts as readers and preferences see them."""
    token_ids: Sequence[tuple[int, ...]]
    pad_id: int
    seed: int
    skipped: int
    """Prompts left out because they were too long."""
    refused: int = 0
    """Prompts left out because the chat template or the tokenizer refuses them."""

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
        bad_rows: BadRows = BadRows.error,
        rows: int | None = None,
        drawn: Callable[[str], None] | None = None,
    ) -> PromptSet:
        """Encode every prompt, or with `drawn` as `select` does, for a model that has embeddings for `rows` tokens.

        Raises InputError for one that it cannot read, or that has more than `max_tokens` tokens, or, where those are
        skipped, if none is left.
        """
        renderer = Renderer(tokenizer, system_prompt, rows=rows)

        def encode(example: Example) -> tuple[int, ...]:
            return tuple(renderer.encode(example)[0])

        def admit(example: Example, ids: tuple[int, ...]) -> bool:
            if len(ids) > max_tokens and too_long is TooLong.error:
                raise InputError(
                    f"data: {example.origin}: the prompt has {len(ids)} tokens, and the limit is {max_tokens}; "
                    f"set data.too_long=skip, {_CHANGE}"
                )
            return len(ids) <= max_tokens

        used = select(examples, encode, admit, bad_rows, drawn)
        if not used.examples:
            raise InputError(
                f"data: none of the {used.read} prompts fits into the limit of {max_tokens} tokens; set {_CHANGE}"
            )
        texts = column(used.examples, lambda example: example.asked)
        return cls(texts, used.encoded, padding_id(tokenizer), seed, used.skipped, used.refused)

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
