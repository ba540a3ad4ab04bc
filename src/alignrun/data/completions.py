"""Completions as token ids, ending the way the model ends its turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignrun.errors import InputError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "ANSWER"


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that closes an assistant turn: the one that the chat template writes, else the tokenizer's EOS.

    Raises InputError where there is neither, and for a template that refuses or leaves out an assistant turn.
    """
    if tokenizer.chat_template:
        written = _after_answer(tokenizer)
        special = {*tokenizer.all_special_ids, *_special_added(tokenizer)}
        for token in tokenizer(written, add_special_tokens=False)["input_ids"]:
            if token in special:
                return int(token)
    if tokenizer.eos_token_id is None:
        raise InputError(
            "data: the tokenizer has no end-of-sequence token, and no chat template that ends a turn; "
            "give one with model.chat_template"
        )
    return int(tokenizer.eos_token_id)


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str, end: Sequence[int]) -> list[int]:
    """The token ids of a completion that follows a prompt of `encode_prompt`, and then those of `end`."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]


def _after_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # a template can raise anything that Jinja and Python can
        raise InputError(
            f"data: the chat template refuses a user and an assistant turn ({one_line(error)}); "
            "mend model.chat_template"
        ) from error
    _, found, rest = text.rpartition(_ANSWER)
    if not found:
        raise InputError("data: the chat template leaves out the assistant's turn; mend model.chat_template")
    return rest


def _special_added(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens with no role of their own: a tokenizer need not name its end-of-turn mark anywhere else."""
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
