"""How a chat template opens and closes an assistant turn."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from alignrun.data.control import UnreadableTextError
from alignrun.data.templates import Turn, write
from alignrun.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "ANSWER"
_QUESTION: Turn = {"role": "user", "content": "Question"}
_OPEN_TAG = re.compile(r"<([A-Za-z][\w-]*)>\s*$")


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that closes an assistant turn: the one that the chat template writes, else the tokenizer's EOS.

    Raises InputError if there is neither, and for a template that refuses or leaves out an assistant turn.
    """
    if tokenizer.chat_template:
        special = {*tokenizer.all_special_ids, *_special_added(tokenizer)}
        for token in tokenizer(after_answer(tokenizer), add_special_tokens=False)["input_ids"]:
            if token in special:
                return int(token)
    if tokenizer.eos_token_id is None:
        raise InputError(
            "data: the tokenizer has no end-of-sequence token, and no chat template that ends a turn; "
            "give one with model.chat_template"
        )
    return int(tokenizer.eos_token_id)


def after_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that the chat template writes after the assistant's. Raises InputError as `end_of_turn`."""
    try:
        text = write(tokenizer, [_QUESTION, {"role": "assistant", "content": _ANSWER}], answer=False)
    except UnreadableTextError as error:
        raise InputError(f"data: {error}") from error
    _, found, rest = text.rpartition(_ANSWER)
    if not found:
        raise InputError("data: the chat template leaves out the assistant's turn; change model.chat_template")
    return rest


def without_end(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """Remove end-of-turn marks, and everything after them, from a completion; other texts are unchanged."""
    names = {str(tokenizer.eos_token or "")}
    with contextlib.suppress(InputError):  # a template without assistant turns does not end them
        names.add(str(tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))))
    marks = "|".join(re.escape(name) for name in sorted(names) if name)
    return partial(re.compile(rf"(?:(?:{marks})\s*)+$").sub, "") if marks else str


def opened(tokenizer: PreTrainedTokenizerBase) -> str:
    r"""The start of every answer that a chat template writes itself, such as `<think>\n`; empty for most.

    It is part of the prompt's tokens, and of the answer's text.
    """
    if not tokenizer.chat_template:
        return ""
    try:
        prompt = write(tokenizer, [_QUESTION], answer=True)
        tag = _OPEN_TAG.search(prompt)
        if tag is None:
            return ""
        whole = write(tokenizer, [_QUESTION, {"role": "assistant", "content": _ANSWER}], answer=False)
    except UnreadableTextError:
        return ""
    # A tag that the template also writes before a given answer is just the start of a turn.
    return "" if whole.startswith(prompt + _ANSWER) else tag[0]


def continued(text: str, opening: str) -> str:
    """The rest of a completion after the part that the prompt contains, see `opened`.

    Raises UnreadableTextError for a completion that neither starts that way nor closes the tag.
    """
    tag = _OPEN_TAG.search(opening)
    if tag is None:
        return text
    begun, spaces = opening.rstrip(), opening[len(opening.rstrip()) :]
    if text.lstrip().startswith(begun):
        rest = text.lstrip().removeprefix(begun)
        return rest.lstrip() if spaces else rest
    if f"</{tag[1]}>" in text:
        return text
    raise UnreadableTextError(
        f"the chat template begins every answer with {begun}, and a completion lacks {begun}...</{tag[1]}>; add it, "
        "or give a template without it with model.chat_template"
    )


def _special_added(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Additional special tokens: a tokenizer may name its end-of-turn mark only here."""
    return {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
