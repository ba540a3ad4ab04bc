"""Conversations with completions as the tokens that a published model reads.

Text stays text: special tokens spelled out in it are never read as those tokens.
"""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignrun.data.control import TextEncoder, UnreadableTextError
from alignrun.data.templates import own_text, write
from alignrun.errors import InputError, RunError
from alignrun.models.published import TokenRow
from alignrun.types import Message, as_prompt, message_text


class ConversationEncoder:
    """A prompt with its completion: through the chat template, or as the two texts that an encoder takes.

    Raises InputError for a tokenizer that has neither a chat template nor the marks of a pair.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str, rows: int | None = None, *, opens: bool = False
    ) -> None:
        """`name` is the preference, for messages, and `rows` how many tokens the model has embeddings for.

        With `opens` the tokenizer's BOS stands before that of the chat template, as some models were trained.
        """
        self._opens = opens
        self.tokenizer, self._name = tokenizer, name
        self._encoder = TextEncoder(tokenizer, own_text(tokenizer), rows)
        self._pair = None if tokenizer.chat_template else _pair_backend(tokenizer, name)
        opening = tokenizer("")["input_ids"][:1]
        self._opening = opening if opening == [tokenizer.bos_token_id] else []

    def encode(self, prompt: str, completion: str) -> TokenRow:
        """The whole conversation. Raises RunError for one that the tokenizer or its template refuses."""
        asked = as_prompt(prompt)
        if asked.turns[-1]["role"] == "assistant":
            raise RunError(f"preference={self._name} judges what follows a prompt, and one ends with the assistant")
        if self._pair is not None:
            encoding = self._pair.encode(str(prompt), completion or None)  # as transformers does
            return TokenRow(tuple(encoding.ids), tuple(encoding.type_ids) if self._typed else ())
        return TokenRow(tuple(self.turns([*asked.turns, {"role": "assistant", "content": completion}])))

    def marked(self, prompt: str, completion: str) -> TokenRow:
        """The same with token types that mark the prompt, for models that read its last token.

        Raises:
            RunError: also where the template writes the prompt differently once an answer follows.
        """
        asked, ids = self.turns(as_prompt(prompt).turns), self.encode(prompt, completion).ids
        if ids[: len(asked)] != tuple(asked):
            raise RunError(
                f"preference={self._name}: the chat template writes a prompt differently once an answer follows, so "
                "where it ends cannot be found: give preference.chat_template"
            )
        return TokenRow(ids, (1,) * len(asked) + (0,) * (len(ids) - len(asked)))

    def turns(self, turns: Sequence[Message], *, answer: bool = False) -> list[int]:
        """Turns through the chat template, with one BOS if the tokenizer starts texts with it."""
        try:
            guard = self._encoder.guard([message_text(turn) for turn in turns])
            hidden: Any = guard.hide(list(turns))
            ids = self._encoder.encode(write(self.tokenizer, hidden, answer=answer), guard)
        except UnreadableTextError as error:
            raise RunError(f"preference={self._name}: {error}") from error
        return ids if ids[:1] == self._opening and not self._opens else [*self._opening, *ids]

    @property
    def _typed(self) -> bool:
        return "token_type_ids" in self.tokenizer.model_input_names


def _pair_backend(tokenizer: PreTrainedTokenizerBase, name: str) -> Any:
    """A tokenizer of pairs that reads no special token in them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.sep_token is None:
        raise InputError(
            f"preference={name}: the tokenizer has no chat template and takes no pairs: give preference.chat_template"
        )
    backend = copy.deepcopy(backend)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend
