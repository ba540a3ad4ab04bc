"""A fixed set of preference pairs, encoded once, from which the batch of any step can be had without any state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignrun.config import BadRows, TooLong
from alignrun.data.drawn import select
from alignrun.data.limits import Limits
from alignrun.data.order import rows_at
from alignrun.data.padding import collate
from alignrun.data.rendering import Renderer
from alignrun.data.values import BadRowError
from alignrun.errors import InputError
from alignrun.types import Example, PairBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as token ids."""

    prompt: tuple[int, ...]
    first: tuple[int, ...]
    """What follows the prompt for the chosen completion."""
    second: tuple[int, ...]
    """The same for the rejected one."""
    plain: tuple[int, int] | None = None
    """Tokens of the prompt and of the longer completion by themselves, where a template stands around them."""

    def __len__(self) -> int:
        return len(self.prompt) + 2 * max(len(self.first), len(self.second))


@dataclass(frozen=True, eq=False, slots=True)
class PairSet:
    """Pairs as text and as token ids, in the order of the data set."""

    examples: Sequence[Example]
    pairs: Sequence[EncodedPair]
    pad_id: int
    seed: int
    skipped: int
    """Pairs left out because they were too long."""
    refused: int = 0
    """Pairs left out because the chat template or the tokenizer refuses them."""
    reference: Tensor | None = None
    """[N, 2] float32, log μ of both completions of each pair, where it was computed ahead."""

    @classmethod
    def build(
        cls,
        examples: Sequence[Example],
        encode: Callable[[Example], EncodedPair],
        *,
        pad_id: int,
        max_prompt_tokens: int,
        max_completion_tokens: int | None,
        max_tokens: int,
        too_long: TooLong,
        seed: int,
        bad_rows: BadRows = BadRows.error,
        drawn: Callable[[str], None] | None = None,
    ) -> PairSet:
        """Encode every pair, with `drawn` as `select` does; `max_tokens` is for the prompt with the longer completion.

        Raises InputError for an example that is no pair, for one that `encode` refuses or that is too long, or, where
        those are skipped, if none is left.
        """
        limits = Limits(max_prompt_tokens, max_completion_tokens, max_tokens, too_long)
        for example in examples:
            if example.chosen is None or example.rejected is None:
                raise InputError(
                    f"data: {example.origin} holds no pair, only a prompt or a demonstration; name data.columns.chosen "
                    "and data.columns.rejected, or choose another data set"
                )

        def admit(example: Example, pair: EncodedPair) -> bool:
            prompt, completion = len(pair.prompt), max(len(pair.first), len(pair.second))
            return limits.admit(example, *(pair.plain or (prompt, completion)), together=prompt + completion)

        used = select(examples, encode, admit, bad_rows, drawn)
        if not used.examples:
            raise limits.refuse_all(used.read, "pairs")
        return cls(used.examples, used.encoded, pad_id, seed, used.skipped, used.refused)

    def __len__(self) -> int:
        return len(self.pairs)

    def with_reference(self, log_probs: Tensor) -> PairSet:
        """The same pairs, each batch of which carries its rows of `log_probs` [N, 2]."""
        return replace(self, reference=log_probs)

    def batch_at(self, step: int, size: int, shift: int = 0) -> PairBatch:
        """The batch of a step, the longest pair first; a pure function of the seed and its arguments, see `rows_at`."""
        return self._batch(self._by_length(rows_at(step, size, len(self), self.seed, shift)))

    def all_rows(self, size: int) -> Iterator[list[int]]:
        """The rows of the batches of `all_batches`: of similar length, so that little of them is padding."""
        ordered = self._by_length(range(len(self)))
        for start in range(0, len(self), size):
            yield ordered[start : start + size]

    def all_batches(self, size: int) -> Iterator[PairBatch]:
        """Every pair once, the longest first, so that what does not fit into memory is seen at once."""
        yield from map(self._batch, self.all_rows(size))

    def _by_length(self, rows: Sequence[int]) -> list[int]:
        return sorted(rows, key=lambda row: -len(self.pairs[row]))

    def _batch(self, rows: Sequence[int]) -> PairBatch:
        pairs = [self.pairs[row] for row in rows]
        examples = [self.examples[row] for row in rows]
        prompts, completions = collate(
            [pair.prompt for pair in pairs],
            [(pair.first, pair.second) for pair in pairs],
            [example.text for example in examples],
            self.pad_id,
        )
        labels = torch.tensor([example.label for example in examples], dtype=torch.float32)
        reference = None if self.reference is None else self.reference[list(rows)]
        return PairBatch(prompts, completions, labels, reference)


def check_labels(examples: Sequence[Example]) -> None:
    """Raise InputError for pairs to train on that are all ties."""
    if all(example.label == 0.5 for example in examples):
        raise InputError(
            f"data: all {len(examples)} pairs are ties: nothing to learn; check data.columns.label or "
            "data.columns.votes, or choose another data set"
        )


def encode_policy_pair(
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    *,
    append_end_of_turn: bool = True,
    rows: int | None = None,
) -> Callable[[Example], EncodedPair]:
    """How a policy with embeddings for `rows` tokens reads a pair: its prompt as for sampling, and each completion as
    it follows, by default closed by the end of the turn."""
    renderer = Renderer(tokenizer, system_prompt, rows=rows, append_end_of_turn=append_end_of_turn)

    def encode(example: Example) -> EncodedPair:
        answers = (example.chosen_turns or str(example.chosen), example.rejected_turns or str(example.rejected))
        if any(turn["role"] != "assistant" for answer in answers if not isinstance(answer, str) for turn in answer):
            raise BadRowError(
                f"data: {example.origin}: its sides part before the last turn, and what users or tools say in between "
                "would be trained on; end both sides after the first answer that differs, or set data.bad_rows=skip"
            )
        prompt, (first, second) = renderer.encode(example, answers)
        if first == second:
            raise BadRowError(f"data: {example.origin}: both completions are the same tokens; remove the row")
        return EncodedPair(tuple(prompt), tuple(first), tuple(second))

    return encode
