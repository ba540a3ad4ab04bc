"""Prompts and what follows them as token ids: the one place where a conversation goes through the chat template.

The tokens of a completion are the difference of two renderings, the prompt with an open assistant turn, and the
conversation with the completion. So they match the template, whatever the tokenizer does at the start of a text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alignrun.data.completions import after_answer, continued, end_of_turn, opened, without_end
from alignrun.data.control import Guard, TextEncoder, UnreadableTextError
from alignrun.data.templates import Tools, Turn, check_written, opening_turns, own_text, squeeze, write
from alignrun.data.values import BadRowError
from alignrun.types import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answer = str | tuple[Message, ...]
"""A completion as text, or as turns if there are several."""


def encode_prompt(tokenizer: PreTrainedTokenizerBase, example: Example, system_prompt: str | None) -> list[int]:
    """The token ids of a prompt, up to the start of the assistant's answer.

    With a chat template, plain text is one user turn, and `system_prompt` comes first unless the conversation has a
    system turn. Without one, plain text is continued directly. Raises BadRowError for a conversation without a
    template, a template that refuses or leaves out a turn, and a prompt of no tokens; InputError for a system prompt
    without a template.
    """
    return Renderer(tokenizer, system_prompt).encode(example)[0]


@contextlib.contextmanager
def row_errors(example: Example) -> Iterator[None]:
    """Adds the row to the error of a text that cannot be read."""
    try:
        yield
    except UnreadableTextError as error:
        raise BadRowError(f"data: {example.origin}: {error}") from error


class Renderer:
    """Encodes prompts and completions for one tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str | None = None,
        *,
        rows: int | None = None,
        append_end_of_turn: bool = True,
    ) -> None:
        """`rows` is the number of the model's embeddings; `closed` completions end with the end-of-turn token."""
        self._tokenizer, self._system_prompt, self._append_end_of_turn = tokenizer, system_prompt, append_end_of_turn
        self._encoder = TextEncoder(tokenizer, own_text(tokenizer), rows)

    def encode(self, example: Example, answers: Sequence[Answer] = ()) -> tuple[list[int], list[list[int]]]:
        """The token ids of a prompt as `encode_prompt` gives them, and of each answer to it. Raises as that does."""
        with row_errors(example):
            turns = opening_turns(self._tokenizer, example, self._system_prompt)
            said = [self._unclosed(answer) for answer in answers]
            guard = self._encoder.guard(_texts([example.prompt if turns is None else turns, example.tools, said]))
            if turns is None:
                return self._plain(str(example.prompt), [str(one) for one in said], guard)
            return self._conversation(guard.hide(turns), guard.hide(example.tools), guard.hide(said), guard)

    def _unclosed(self, answer: Answer) -> Answer:
        """An answer without its own end marks."""
        if not self._append_end_of_turn:
            return answer
        if isinstance(answer, str):
            return self._without_end(answer)
        texts = (turn["content"] and self._without_end(turn["content"]) for turn in answer)
        return tuple({**turn, "content": text} for turn, text in zip(answer, texts, strict=True))

    def _plain(self, prompt: str, answers: Sequence[str], guard: Guard) -> tuple[list[int], list[list[int]]]:
        before = guard.hide(prompt)
        ids = self._some(self._encoder.encode(before, guard, opens=True))
        end = [self._end] if answers and self._append_end_of_turn else []
        tails = (self._encoder.follow(before, ids, guard.hide(answer), guard, opens=True) for answer in answers)
        return ids, [[*tail, *end] for tail in tails]

    def _conversation(
        self, turns: Sequence[Turn], tools: Tools, answers: Sequence[Any], guard: Guard
    ) -> tuple[list[int], list[list[int]]]:
        prompt = write(self._tokenizer, turns, tools, answer=True)
        ids = self._some(self._encoder.encode(prompt, guard))
        check_written(self._tokenizer, turns, tools, prompt, answer=True)
        tails = []
        for answer in answers:
            more = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
            whole = write(self._tokenizer, [*turns, *more], tools, answer=False)
            if not isinstance(answer, str):
                check_written(self._tokenizer, [*turns, *more], tools, whole, answer=False)
            after = self._after(prompt, whole, more)
            tails.append(self._closed_at_end(prompt, ids, after, guard, several=len(more) > 1))
        return ids, tails

    def _after(self, prompt: str, whole: str, answer: Sequence[Turn]) -> str:
        """The tokens that the answer adds to the prompt."""
        contents = [turn["content"] for turn in answer if turn.get("content")]
        if whole.startswith(prompt):
            after = whole.removeprefix(prompt)
            if all(squeeze(content) in squeeze(after) for content in contents):
                return after
        # The template writes an answer differently from the prompt for one, or removes its reasoning. The model
        # continues the prompt, with everything in the row.
        if len(answer) > 1 or set(answer[0]) != {"role", "content"}:
            raise UnreadableTextError(
                "the chat template does not write the turns of a completion as they follow the prompt; "
                "change the row or model.chat_template"
            )
        return continued(contents[0], self._opened) + self._after_answer

    def _closed_at_end(self, prompt: str, ids: list[int], after: str, guard: Guard, *, several: bool) -> list[int]:
        """The tokens of an answer up to the end of its turn; if there are several turns, of the last."""
        tail = self._encoder.follow(prompt, ids, after, guard)
        ends = [place for place, token in enumerate(tail) if token == self._end]
        if self._append_end_of_turn and ends:
            return tail[: ends[-1 if several else 0] + 1]
        tail = self._encoder.follow(prompt, ids, after.removesuffix(self._after_answer), guard)
        return [*tail, self._end] if self._append_end_of_turn else tail

    @cached_property
    def _end(self) -> int:
        (end,) = self._encoder.checked([end_of_turn(self._tokenizer)])
        return end

    @cached_property
    def _without_end(self) -> Callable[[str], str]:
        return without_end(self._tokenizer)

    @cached_property
    def _after_answer(self) -> str:
        return after_answer(self._tokenizer)

    @cached_property
    def _opened(self) -> str:
        return opened(self._tokenizer)

    def _some(self, ids: list[int]) -> list[int]:
        if not ids:
            raise UnreadableTextError("the prompt has no tokens under this tokenizer; check the row")
        return ids


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, Sequence):
        for part in value:
            yield from _texts(part)
