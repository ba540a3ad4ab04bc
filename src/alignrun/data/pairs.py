"""A fixed set of preference pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from alignrun.data.dataset import Dataset, Read
from alignrun.data.encoding import Encoding
from alignrun.data.padding import collate
from alignrun.data.rendering import Renderer
from alignrun.data.store import Kind, first_below, kinds_of
from alignrun.data.values import BadRowError
from alignrun.errors import InputError
from alignrun.security.text import counted
from alignrun.types import Example, PairBatch


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as token ids."""

    prompt: tuple[int, ...]
    first: tuple[int, ...]
    """The tokens after the prompt for the chosen completion."""
    second: tuple[int, ...]
    """The same for the rejected one."""
    plain: tuple[int, int] | None = None
    """The number of tokens of the prompt and of the longer completion without the template around them."""

    def __len__(self) -> int:
        return len(self.prompt) + 2 * max(len(self.first), len(self.second))


@dataclass(frozen=True, eq=False, slots=True)
class PairSet(Dataset[EncodedPair]):
    """Pairs as text and as token ids; a batch holds the longest pair first."""

    reference: Tensor | None = None
    """[N, 2] float32, log μ of both completions of each pair, if precomputed."""

    @classmethod
    def build(
        cls, examples: Sequence[Example], encoding: Encoding, encode: Callable[[Example], EncodedPair]
    ) -> PairSet:
        """Encode every pair; the context must hold the prompt with the longer completion.

        Raises InputError for an example that is not a pair, for one that `encode` refuses or that is too long, or, if
        those are skipped, if none is left.
        """
        limits = encoding.limits
        if example := first_below(examples, Kind.tie):
            raise InputError(
                f"data: {example.origin} holds no pair, only a prompt or a demonstration; name data.columns.chosen "
                "and data.columns.rejected, or choose another data set"
            )

        def admit(example: Example, pair: EncodedPair) -> bool:
            prompt, completion = len(pair.prompt), max(len(pair.first), len(pair.second))
            return limits.admit(example, *(pair.plain or (prompt, completion)), together=prompt + completion)

        return cls.select(examples, encoding, encode, admit, partial(limits.refuse_all, what="pair"))

    def with_reference(self, log_probs: Tensor) -> PairSet:
        """The same pairs, each batch of which carries its rows of `log_probs` [N, 2]."""
        return replace(self, reference=log_probs)

    def lengths(self, row: int) -> Mapping[str, int]:
        """The tokens of the prompt and both completions; with the template of a feedback model, of the longer one."""
        pair = self.encoded[row]
        if pair.plain is not None:
            return dict(zip(("prompt", "longer completion"), pair.plain, strict=True))
        return {"prompt": len(pair.prompt), "chosen": len(pair.first), "rejected": len(pair.second)}

    def shown(self, row: int) -> Sequence[Read]:
        """The prompt with each completion; a feedback model scores the text and learns none of its tokens."""
        pair = self.encoded[row]
        names = ("chosen", "rejected") if pair.plain is None else ("first reading", "second reading")
        texts = [(*pair.prompt, *tail) for tail in (pair.first, pair.second)]
        learned = [((len(pair.prompt), len(text)),) if pair.plain is None else () for text in texts]
        return [Read(*one) for one in zip(names, texts, learned, strict=True)]

    def ordered(self, rows: Sequence[int]) -> list[int]:
        """The longest first: little padding, and a batch that does not fit into memory fails at once."""
        return sorted(rows, key=lambda row: -len(self.encoded[row]))

    def batch(self, rows: Sequence[int]) -> PairBatch:
        """These pairs, prompts padded on the left and completions on the right."""
        pairs = [self.encoded[row] for row in rows]
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
    """Raise InputError if all training pairs are ties; pairs encoded on demand are not encoded for this."""
    if Kind.pair not in kinds_of(examples):
        raise InputError(
            f"data: no preference in {counted(len(examples), 'pair')}, all ties: nothing to learn; check "
            "data.columns.label or data.columns.votes, or choose another data set"
        )


def encode_policy_pair(encoding: Encoding) -> Callable[[Example], EncodedPair]:
    """Encodes a pair for a policy: the prompt as for sampling, and each completion following it."""
    renderer = Renderer(
        encoding.tokenizer, encoding.system_prompt, rows=encoding.rows, append_end_of_turn=encoding.append_end_of_turn
    )

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
