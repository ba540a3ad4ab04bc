"""A fixed set of demonstrations for supervised fine-tuning, packed so that short ones share a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from alignrun.data.dataset import Dataset
from alignrun.data.encoding import Encoding
from alignrun.data.rendering import Renderer
from alignrun.data.store import Kind, first_below
from alignrun.errors import InputError
from alignrun.types import Example, Message, PackedBatch, as_turns


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and its completion as token ids."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    """Closed by the end of the turn."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, eq=False, slots=True)
class DemonstrationSet(Dataset[Demonstration]):
    """Demonstrations as text and as token ids, in the order of the data set."""

    pack_tokens: int | None
    """The length of a packed row; None for the longest demonstration of the batch."""

    @classmethod
    def build(cls, examples: Sequence[Example], encoding: Encoding, pack_tokens: int | None) -> DemonstrationSet:
        """Encode every prompt with its chosen completion.

        A rejected completion is left aside. Of one of several turns the last is learned, and the others stand before
        it, as in `messages`. Raises InputError for an example without a completion, for one that cannot be read or is
        too long, or, where those are skipped, if none is left; and for one that does not fit into a packed row.
        """
        limits = encoding.limits
        renderer = Renderer(encoding.tokenizer, encoding.system_prompt, rows=encoding.rows)
        if example := first_below(examples, Kind.demonstration):
            raise InputError(
                f"data: {example.origin} holds a prompt without a completion; name data.columns.completion or "
                "data.columns.messages, or choose another data set"
            )

        def admit(example: Example, one: Demonstration) -> bool:
            fits = limits.admit(example, len(one.prompt), len(one.completion))
            if fits and pack_tokens is not None and len(one) > pack_tokens:
                raise InputError(
                    f"data: {example.origin} has {len(one)} tokens, more than a packed row holds; set pack_tokens to "
                    f"{len(one)} instead of {pack_tokens}, or lower data.max_completion_tokens with data.too_long=skip"
                )
            return fits

        none_left = partial(limits.refuse_all, what="demonstration")
        return cls.select(examples, encoding, partial(_encode, renderer), admit, none_left, pack_tokens=pack_tokens)

    def batch(self, rows: Sequence[int]) -> PackedBatch:
        """These demonstrations, packed."""
        chosen = [self.encoded[row] for row in rows]
        lengths = [len(demonstration) for demonstration in chosen]
        packed = first_fit_decreasing(lengths, self.pack_tokens or max(lengths))
        return _lay_out([[chosen[index] for index in row] for row in packed], self.pad_id)


def _encode(renderer: Renderer, example: Example) -> Demonstration:
    answer: str | tuple[Message, ...] = str(example.chosen)
    if turns := example.chosen_turns:
        example = replace(example, prompt=(*as_turns(example.prompt), *turns[:-1]))
        last = turns[-1]
        answer = last["content"] if last["content"] and last.keys() == {"role", "content"} else (last,)
    prompt, (completion,) = renderer.encode(example, [answer])
    return Demonstration(tuple(prompt), tuple(completion))


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items share a row: each, the longest first, goes into the first row that still has room for it.

    At most 11/9 of the fewest rows possible, plus one (Johnson, 1973). No length may be over the capacity.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((row for row, free in enumerate(room) if free >= lengths[index]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(capacity)
        rows[place].append(index)
        room[place] -= lengths[index]
    return rows


def _lay_out(rows: Sequence[Sequence[Demonstration]], pad_id: int) -> PackedBatch:
    width = max(sum(map(len, row)) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    position_ids = torch.zeros_like(input_ids)
    targets = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        start = 0
        for demonstration in row:
            answer, stop = start + len(demonstration.prompt), start + len(demonstration)
            input_ids[index, start:stop] = torch.tensor(demonstration.prompt + demonstration.completion)
            position_ids[index, start:stop] = torch.arange(stop - start)
            targets[index, answer:stop] = True
            start = stop
        position_ids[index, start:] = torch.arange(width - start)
    return PackedBatch(input_ids, position_ids, targets)
