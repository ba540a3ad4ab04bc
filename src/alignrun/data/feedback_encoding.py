"""Encodes a prompt with one completion (reward model) or two (preference model) through a template.

The text is split once: the head, up to the first completion, is the same for every completion of a prompt; a tail is
the rest, as the tokens of the whole text after those of the head. Completions are stripped of surrounding white space
and end marks, in training and at query time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import permutations
from typing import TYPE_CHECKING, ClassVar

from alignrun.config.templates import split_template
from alignrun.data.completions import end_of_turn, without_end
from alignrun.data.control import Guard, TextEncoder, UnreadableTextError
from alignrun.data.pairs import EncodedPair
from alignrun.data.rendering import row_errors
from alignrun.data.templates import own_text, write
from alignrun.errors import InputError
from alignrun.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class FeedbackEncoder:
    """Writes prompts and completions into a template, as token ids.

    With a chat template, the filled template is one user turn before the model's answer; without one, it is plain text
    that ends with EOS. Raises InputError for a template without its fields.
    """

    fields: ClassVar[tuple[str, ...]]
    """`prompt`, then one or two completions."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, rows: int | None = None) -> None:
        """`rows` is the number of the model's embeddings."""
        self._tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer, own_text(tokenizer), rows)
        self._pieces = split_template(template, self.fields, "template")
        self._plain = not tokenizer.chat_template
        self._end = [end_of_turn(tokenizer)] if self._plain else []

    def encode(self, prompt: str, completions: Sequence[Sequence[str]]) -> tuple[list[int], list[list[int]]]:
        """The head of a prompt and one tail for each tuple of completions: (first, second), or (completion,).

        Raises InputError for a chat template that refuses the text or leaves it out, and for a text that the tokenizer
        or the model cannot read.
        """
        try:
            return self._encode(prompt, completions)
        except UnreadableTextError as error:
            raise InputError(f"data: of the feedback model, {error}") from error

    def encode_pair(self, example: Example) -> EncodedPair:
        """The chosen and then the rejected completion, or both in either order. Raises BadRowError where
        `encode` raises InputError."""
        texts = (str(example.chosen), str(example.rejected))
        with row_errors(example):
            head, (first, second) = self._encode(example.text, list(permutations(texts, len(self.fields) - 1)))
            guard = self._encoder.guard([example.text, *texts])
            plain = (example.text, *map(self._bare, texts))
            prompt, one, other = (len(self._encoder.encode(guard.hide(text), guard)) for text in plain)
        return EncodedPair(tuple(head), tuple(first), tuple(second), plain=(prompt, max(one, other)))

    def _encode(self, prompt: str, completions: Sequence[Sequence[str]]) -> tuple[list[int], list[list[int]]]:
        before, after_prompt, *after = self._pieces
        bare = [[self._bare(text) for text in texts] for texts in completions]
        tails = ["".join(text + piece for text, piece in zip(texts, after, strict=True)) for texts in bare]
        text = before + prompt + after_prompt
        guard = self._encoder.guard([text, *tails])
        head, closing = self._frame(guard.hide(text), guard)
        # A chat template writes the special tokens itself.
        ids = self._encoder.encode(head, guard, opens=self._plain)
        follow = partial(self._encoder.follow, head, ids, guard=guard, opens=self._plain)
        return ids, [[*follow(guard.hide(tail) + closing), *self._end] for tail in tails]

    def _bare(self, completion: str) -> str:
        return self._without_end(completion).strip()

    @cached_property
    def _without_end(self) -> Callable[[str], str]:
        return without_end(self._tokenizer)

    def _frame(self, head: str, guard: Guard) -> tuple[str, str]:
        """The text up to the first completion, and what the chat template writes after the last."""
        if self._plain:
            return head, ""
        # By itself the mark stands for the completions; behind the first letter of a name it is no more than a break.
        place = guard.mark * 2
        text = write(self._tokenizer, [{"role": "user", "content": head + place}], answer=True)
        opening, found, closing = text.rpartition(place)
        if not found:
            raise UnreadableTextError("the chat template leaves out the user's text; change model.chat_template")
        return opening, closing


class RewardEncoder(FeedbackEncoder):
    """For a reward model: a tail is one completion. A pair is the tails of chosen and of rejected."""

    fields = ("prompt", "completion")


class PreferenceEncoder(FeedbackEncoder):
    """For a preference model: a tail is two completions. A pair is the tails of (chosen, rejected) and the reverse."""

    fields = ("prompt", "first", "second")
