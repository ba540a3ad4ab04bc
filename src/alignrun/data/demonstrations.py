"""A fixed set of demonstrations for supervised fine-tuning, packed so that short ones share a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from alignrun.config import TrainOn
from alignrun.data.dataset import Dataset, Read
from alignrun.data.encoding import Encoding
from alignrun.data.rendering import Renderer
from alignrun.data.store import Kind, first_below
from alignrun.data.values import BadRowError
from alignrun.errors import InputError
from alignrun.security.text import counted
from alignrun.types import Example, Message, PackedBatch, as_turns, message_text

_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Piece:
    """A text with some tokens to learn, each from those before it."""

    ids: tuple[int, ...]
    learned: tuple[tuple[int, int], ...]
    """The ranges to learn, in order: an answer including the end of its turn."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation as token ids: one text, or several if the template writes past turns differently."""

    turns: tuple[tuple[int, int], ...]
    """The number of tokens of the prompt and of the answer, for each turn to learn."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, eq=False, slots=True)
class DemonstrationSet(Dataset[Demonstration]):
    """Demonstrations as text and as token ids, in the order of the data set."""

    pack_tokens: int | None
    """The length of a packed row; None for the longest demonstration of the batch."""
    every: bool = False
    """Whether every assistant turn is learned."""

    @classmethod
    def build(cls, examples: Sequence[Example], encoding: Encoding, pack_tokens: int | None) -> DemonstrationSet:
        """Encode every prompt with its chosen completion.

        A rejected completion is ignored. If there are several turns, the last is learned and the others precede it, as
        in `messages`; with `train_on=all` every assistant turn is learned. Raises InputError for an example without a
        completion, for one that cannot be read or is too long, or, where those are skipped, if none is left; and for
        one that does not fit into a packed row.
        """
        limits = encoding.limits
        renderer = Renderer(encoding.tokenizer, encoding.system_prompt, rows=encoding.rows)
        if example := first_below(examples, Kind.demonstration):
            raise InputError(
                f"data: {example.origin} holds a prompt without a completion; name data.columns.completion or "
                "data.columns.messages, or choose another data set"
            )

        def admit(example: Example, one: Demonstration) -> bool:
            fits = all(limits.admit(example, prompt, answer) for prompt, answer in one.turns)
            longest = max(map(len, one.pieces))
            if fits and pack_tokens is not None and longest > pack_tokens:
                raise InputError(
                    f"data: {example.origin} has {longest} tokens, more than a packed row holds; set pack_tokens to "
                    f"{longest} instead of {pack_tokens}, or lower data.max_completion_tokens with data.too_long=skip"
                )
            return fits

        every = encoding.data.train_on is TrainOn.all
        encode = partial(_encode, renderer, every=every, context=encoding.context)
        none_left = partial(limits.refuse_all, what="demonstration")
        return cls.select(examples, encoding, encode, admit, none_left, pack_tokens=pack_tokens, every=every)

    def notes(self) -> list[str]:
        """A note on how many of the first rows have turns that are not learned."""
        looked_at = self.examples[:_LOOKED_AT]
        several = [example for example in looked_at if not isinstance(example.prompt, str)]
        count = sum(any(map(_is_answer, example.prompt)) for example in several)  # type: ignore[arg-type]
        if self.every or not count:
            return []
        return [
            f"{count} of the first {counted(len(looked_at), 'row')} have earlier turns of the assistant, which are not "
            "learned: data.train_on=all learns them too"
        ]

    def lengths(self, row: int) -> Mapping[str, int]:
        """The number of tokens read, and of those learned."""
        pieces = self.encoded[row].pieces
        learned = sum(end - start for piece in pieces for start, end in piece.learned)
        return {"prompt": sum(map(len, pieces)) - learned, "completion": learned}

    def shown(self, row: int) -> Sequence[Read]:
        """The conversation, more than once if the template writes past turns differently."""
        return [Read("demonstration", piece.ids, piece.learned) for piece in self.encoded[row].pieces]

    def batch(self, rows: Sequence[int]) -> PackedBatch:
        """These demonstrations, packed."""
        pieces = [piece for row in rows for piece in self.encoded[row].pieces]
        lengths = [len(piece) for piece in pieces]
        packed = first_fit_decreasing(lengths, self.pack_tokens or max(lengths))
        return _lay_out([[pieces[index] for index in row] for row in packed], self.pad_id)


def _encode(renderer: Renderer, example: Example, every: bool, context: int) -> Demonstration:
    """The learned turns, each following its prompt; the last one, the longest, first."""
    turns = (*as_turns(example.prompt), *(example.chosen_turns or _said(str(example.chosen))))
    if turns[-1]["role"] != "assistant":
        raise BadRowError(f"data: {example.origin} ends with the {turns[-1]['role']}, of whom nothing is learned")
    places = [place for place, turn in enumerate(turns) if _is_answer(turn)] if every else [len(turns) - 1]
    read: list[tuple[list[int], list[int]]] = []
    for place in reversed(places):
        prompt = example.prompt if place == 1 and isinstance(example.prompt, str) else turns[:place]
        if not prompt:  # nobody has asked yet
            break
        last = turns[place]
        plain = last["content"] and last.keys() == {"role", "content"}
        asked, (answer,) = renderer.encode(
            replace(example, prompt=prompt), [str(last["content"]) if plain else (last,)]
        )
        read.insert(0, (asked, answer))
        if len(asked) + len(answer) > context:
            break  # refuse it for its length before encoding more
    lengths = tuple((len(asked), len(answer)) for asked, answer in read)
    return Demonstration(lengths, tuple(_pieces(read)))


def _is_answer(turn: Message) -> bool:
    return turn["role"] == "assistant" and bool(message_text(turn).strip())


def _said(text: str) -> tuple[Message, ...]:
    return ({"role": "assistant", "content": text},)


def _pieces(read: Sequence[tuple[list[int], list[int]]]) -> list[Piece]:
    """Texts that contain every answer once, after its prompt; a prompt that extends an earlier text replaces it."""
    pieces: list[Piece] = []
    for asked, answer in read:
        learned: tuple[tuple[int, int], ...] = ()
        if pieces and tuple(asked[: len(pieces[-1])]) == pieces[-1].ids:
            learned = pieces.pop().learned
        ids = (*asked, *answer)
        pieces.append(Piece(ids, (*learned, (len(asked), len(ids)))))
    return pieces


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit-decreasing packing: the items of each row.

    At most 11/9 of the fewest rows possible, plus one (Johnson, 1973). No length may exceed the capacity.
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


def _lay_out(rows: Sequence[Sequence[Piece]], pad_id: int) -> PackedBatch:
    width = max(sum(map(len, row)) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    position_ids = torch.zeros_like(input_ids)
    targets = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        start = 0
        for piece in row:
            stop = start + len(piece)
            input_ids[index, start:stop] = torch.tensor(piece.ids)
            position_ids[index, start:stop] = torch.arange(stop - start)
            for first, end in piece.learned:
                targets[index, start + first : start + end] = True
            start = stop
        position_ids[index, start:] = torch.arange(width - start)
    return PackedBatch(input_ids, position_ids, targets)
