"""Rows of a data set, checked and turned into `Example`.

Every failure is an `InputError` of one line that names the row and the way to mend it.
"""

from collections.abc import Sequence

from alignrun.config import ColumnsConfig
from alignrun.data.labels import with_label
from alignrun.data.transcripts import completion_text, parse_transcript
from alignrun.data.values import Row, Turns, checked_text, kind, require_column, text_or_turns
from alignrun.errors import InputError
from alignrun.types import Example


def parse_row(row: Row, origin: str, columns: ColumnsConfig) -> Example:
    """Turn a row into an example, of the first kind that its columns allow.

    1. A pair: prompt, chosen and rejected; or chosen and rejected that share their opening turns, as conversations or
       as Human/Assistant transcripts (HH-RLHF). A label or votes say how likely `chosen` is to be preferred.
    2. A demonstration: prompt and completion, or a conversation in `messages` that ends with the assistant.
    3. A prompt alone.

    Text or a list of {role, content} in every column. Raises InputError for a missing column, a wrong type, an
    unknown role, a blank text, two equal completions, an unknown vote or label, or a prompt that does not end with
    the user.
    """
    if columns.chosen in row or columns.rejected in row or columns.label or columns.votes:
        return with_label(_pair(row, origin, columns), row, columns)
    if columns.completion in row and columns.completion != columns.prompt:
        prompt = _prompt(row, origin, columns)
        completion = _answer(text_or_turns(row, columns.completion, origin), prompt, columns.completion, origin)
        return Example(prompt, origin, chosen=_filled(completion, columns.completion, origin))
    if columns.messages in row and (columns.messages != ColumnsConfig.messages or not _prompt_is_named(columns)):
        return _conversation(row, origin, columns)
    return Example(_prompt(row, origin, columns), origin)


def _pair(row: Row, origin: str, columns: ColumnsConfig) -> Example:
    implicit = columns.prompt not in row and not _prompt_is_named(columns)
    for role, column in (("prompt", columns.prompt), ("chosen", columns.chosen), ("rejected", columns.rejected)):
        if not (implicit and role == "prompt"):
            require_column(row, role, column, origin)
    names = (columns.chosen, columns.rejected)
    sides = [text_or_turns(row, name, origin) for name in names]
    prompt: str | Turns
    if implicit:
        prompt, texts = _shared_opening(sides, names, origin)
    else:
        prompt = _prompt(row, origin, columns)
        texts = [_answer(side, prompt, name, origin) for side, name in zip(sides, names, strict=True)]
    chosen, rejected = (_filled(text, name, origin) for text, name in zip(texts, names, strict=True))
    if chosen.strip() == rejected.strip():
        raise InputError(f"data: {origin} has two equal completions; change one or remove the row")
    return Example(prompt, origin, chosen, rejected)


def _conversation(row: Row, origin: str, columns: ColumnsConfig) -> Example:
    turns = text_or_turns(row, columns.messages, origin)
    if isinstance(turns, str) or len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise InputError(
            f"data: {origin}, column '{columns.messages}' must be a conversation that ends with the assistant; "
            f"if it holds prompts, set data.columns.prompt={columns.messages}"
        )
    prompt = _ends_with_user(turns[:-1], origin)
    return Example(prompt, origin, chosen=_filled(turns[-1]["content"], columns.messages, origin))


def _prompt_is_named(columns: ColumnsConfig) -> bool:
    """A prompt may hide in a pair or in messages, but not where the user says which column it comes from."""
    return columns.prompt != ColumnsConfig.prompt or columns.input is not None


def _prompt(row: Row, origin: str, columns: ColumnsConfig) -> str | Turns:
    require_column(row, "prompt", columns.prompt, origin)
    prompt = _ends_with_user(text_or_turns(row, columns.prompt, origin), origin)
    if columns.input is None:
        return prompt
    require_column(row, "input", columns.input, origin)
    more = row[columns.input]
    where = f"{origin}, column '{columns.input}'"
    if more is not None and not isinstance(more, str):
        raise InputError(f"data: {where} is {kind(more)}; it must be text")
    if more is None or not more.strip():
        return prompt
    if not isinstance(prompt, str):
        raise InputError(f"data: {where} cannot go on after a conversation; set data.columns.input=null")
    return f"{prompt}\n\n{checked_text(more, where)}"


def _ends_with_user(value: str | Turns, origin: str) -> str | Turns:
    if not isinstance(value, str) and value[-1]["role"] != "user":
        raise InputError(f"data: {origin} has a prompt that ends with the {value[-1]['role']}; end it with the user")
    if not (value if isinstance(value, str) else value[-1]["content"]).strip():
        raise InputError(f"data: {origin} has an empty prompt; fill it in or remove the row")
    return value


def _answer(value: str | Turns, prompt: str | Turns, column: str, origin: str) -> str:
    """The text of a completion that may also be one assistant message, alone or after the prompt."""
    if isinstance(value, str):
        return value
    opening = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    if value[-1]["role"] != "assistant" or value[:-1] not in ((), opening):
        raise InputError(
            f"data: {origin}, column '{column}' must be text or end in one assistant message, alone or after the prompt"
        )
    return value[-1]["content"]


def _filled(completion: str, column: str, origin: str) -> str:
    if not completion.strip():
        raise InputError(f"data: {origin} has an empty completion in '{column}'; fill it in or remove the row")
    return completion


def _shared_opening(
    sides: Sequence[str | Turns], columns: Sequence[str], origin: str
) -> tuple[str | Turns, Sequence[str]]:
    """The prompt that both sides of a pair open with, and how each goes on."""
    transcripts = isinstance(sides[0], str)
    if isinstance(sides[1], str) != transcripts:
        raise InputError(f"data: {origin} has text on one side and a conversation on the other; write both alike")
    chosen, rejected = (parse_transcript(side, origin) if isinstance(side, str) else side for side in sides)
    prompt = _ends_with_user(_shared_turns(chosen, rejected, origin), origin)
    if transcripts:
        return prompt, [completion_text(turns[len(prompt) :]) for turns in (chosen, rejected)]
    return prompt, [_answer(side, prompt, name, origin) for side, name in zip(sides, columns, strict=True)]


def _shared_turns(chosen: Turns, rejected: Turns, origin: str) -> Turns:
    """The common opening, up to its last user turn, such that both sides go on after it."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1]["role"] != "user":
        shared -= 1
    if not shared:
        raise InputError(f"data: {origin} has chosen and rejected that do not open with one user turn; give a prompt")
    return chosen[:shared]
