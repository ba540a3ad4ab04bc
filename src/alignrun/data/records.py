"""Rows of a data set, checked and turned into `Example`.

Every failure is an `InputError` of one line that names the row and what to change.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from alignrun.config import ColumnsConfig
from alignrun.data.columns import CONVERSATIONS, Wanted, check_columns, kept_columns, with_layout
from alignrun.data.labels import check_liked, with_label
from alignrun.data.transcripts import completion_text, parse_transcript
from alignrun.data.values import Row, Turns, checked_text, kind, likely_prompt, require_column, text_or_turns, tools_of
from alignrun.errors import InputError
from alignrun.types import Example, as_turns, message_text


def parse_row(row: Row, origin: str, columns: ColumnsConfig, wanted: Wanted = ()) -> Example:
    """Turn a row into an example of the first kind that its columns allow.

    1. A pair: prompt, chosen and rejected; or chosen and rejected that share their opening turns, as conversations or
       as Human/Assistant transcripts (HH-RLHF). A label or votes say how likely `chosen` is to be preferred.
    2. A demonstration: prompt and completion, or a conversation in `messages` that ends with the assistant. One that
       people did not like, by its label, is refused.
    3. A prompt alone.

    Alpaca's names (instruction, input, output) and ShareGPT's (conversations) are known. Text or messages in every
    column; a system prompt and tools may stand in columns of their own. The `wanted` other columns are kept unchanged.

    Raises InputError for a missing column, a wrong type, an unknown role, a blank text, two equal completions, an
    unknown vote or label, a prompt that does not end with the user or a tool, and an unread column that changes what
    the row means.
    """
    columns = with_layout(row, columns)
    check_columns(row, origin, columns)
    prompt_column = _prompt_column(row, columns)
    # Copying the columns takes longer than reading a short row.
    renamed = columns if prompt_column == columns.prompt else replace(columns, prompt=prompt_column)
    example = _parse(row, origin, renamed, columns)
    tools = row.get(columns.tools) if columns.tools else None
    more: dict[str, Any] = {"tools": tools_of(tools, f"{origin}, column '{columns.tools}'")} if tools else {}
    if wanted is None or wanted:
        texts = {prompt_column, columns.chosen, columns.rejected, columns.completion, _messages_column(row, columns)}
        kept = {name: row[name] for name in kept_columns(row, texts, columns, wanted)}
        more |= {"columns": kept} if kept else {}
    return replace(example, **more) if more else example


def _parse(row: Row, origin: str, columns: ColumnsConfig, given: ColumnsConfig) -> Example:
    named = _prompt_is_named(given)
    completed = columns.completion in row and columns.completion != columns.prompt
    messages = _messages_column(row, columns)
    spoken = messages in row and (columns.messages != ColumnsConfig.messages or not named)
    judged = columns.votes or (columns.label and not (completed or spoken))
    if columns.chosen in row or columns.rejected in row or judged:
        return with_label(_pair(row, origin, columns, named), row, columns)
    if completed:
        prompt = _prompt(row, origin, columns)
        prompt, (answer,) = _answers(prompt, row, (columns.completion,), origin)
        check_liked(row, columns, origin)
        return Example(prompt, origin, chosen=answer[0], chosen_turns=answer[1])
    if spoken:
        check_liked(row, columns, origin)
        return _conversation(row, origin, replace(columns, messages=messages))
    return Example(_prompt(row, origin, columns), origin)


def _prompt_column(row: Row, columns: ColumnsConfig) -> str:
    """The column of the prompt; in a pair of ShareGPT's form it is `conversations`."""
    pair = columns.chosen in row and columns.rejected in row
    unnamed = columns.prompt == ColumnsConfig.prompt and columns.prompt not in row
    return CONVERSATIONS if pair and unnamed and CONVERSATIONS in row else columns.prompt


def _messages_column(row: Row, columns: ColumnsConfig) -> str:
    unnamed = columns.messages == ColumnsConfig.messages and columns.messages not in row
    return CONVERSATIONS if unnamed and CONVERSATIONS in row else columns.messages


def _pair(row: Row, origin: str, columns: ColumnsConfig, named: bool) -> Example:
    implicit = columns.prompt not in row and not named
    for role, column in (("prompt", columns.prompt), ("chosen", columns.chosen), ("rejected", columns.rejected)):
        if not (implicit and role == "prompt"):
            require_column(row, role, column, origin)
    names = (columns.chosen, columns.rejected)
    prompt: str | Turns
    if implicit:
        sides = [text_or_turns(row, name, origin) for name in names]
        prompt, answers = _shared_opening(sides, names, origin, likely_prompt(row))
        prompt = _with_system(prompt, row, columns, origin)
    else:
        prompt, answers = _answers(_prompt(row, origin, columns), row, names, origin)
    (chosen, chosen_turns), (rejected, rejected_turns) = answers
    if chosen.strip() == rejected.strip():
        raise InputError(f"data: {origin} has two equal completions; change one or remove the row")
    return Example(prompt, origin, chosen, rejected, chosen_turns=chosen_turns, rejected_turns=rejected_turns)


def _conversation(row: Row, origin: str, columns: ColumnsConfig) -> Example:
    turns = text_or_turns(row, columns.messages, origin)
    if isinstance(turns, str) or len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise InputError(
            f"data: {origin}, column '{columns.messages}' must be a conversation that ends with the assistant; "
            f"if it holds prompts, set data.columns.prompt={columns.messages}"
        )
    prompt = _with_system(_ends_with_user(turns[:-1], origin), row, columns, origin)
    text, answer = _as_answer(turns[-1:], columns.messages, origin)
    return Example(prompt, origin, chosen=text, chosen_turns=answer)


def _prompt_is_named(columns: ColumnsConfig) -> bool:
    """A prompt may be part of a pair or of messages, but not if the user names its column."""
    return columns.prompt != ColumnsConfig.prompt or columns.input is not None


def _prompt(row: Row, origin: str, columns: ColumnsConfig) -> str | Turns:
    return _with_system(_asked(row, origin, columns), row, columns, origin)


def _asked(row: Row, origin: str, columns: ColumnsConfig) -> str | Turns:
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
        raise InputError(f"data: {where} cannot come after a conversation; set data.columns.input=null")
    return f"{prompt}\n\n{checked_text(more, where)}"


def _with_system(prompt: str | Turns, row: Row, columns: ColumnsConfig, origin: str) -> str | Turns:
    """The prompt after the system turn from the row's system column."""
    if columns.system is None or (columns.system == ColumnsConfig.system and columns.system not in row):
        return prompt
    require_column(row, "system", columns.system, origin)
    system, where = row[columns.system], f"{origin}, column '{columns.system}'"
    if system is None or system == "":
        return prompt
    if not isinstance(system, str):
        raise InputError(f"data: {where} is {kind(system)}; it must be text")
    turns = as_turns(prompt)
    if turns[0]["role"] != "system":
        return ({"role": "system", "content": checked_text(system, where)}, *turns)
    if turns[0]["content"] != system:
        raise InputError(f"data: {where} differs from the system turn of the prompt; keep one of them")
    return prompt


def _ends_with_user(value: str | Turns, origin: str) -> str | Turns:
    if not isinstance(value, str) and value[-1]["role"] not in ("user", "tool"):
        raise InputError(f"data: {origin} has a prompt that ends with the {value[-1]['role']}; end it with the user")
    if not (value if isinstance(value, str) else message_text(value[-1])).strip():
        raise InputError(f"data: {origin} has an empty prompt; fill it in or remove the row")
    return value


def _answers(
    prompt: str | Turns, row: Row, names: Sequence[str], origin: str
) -> tuple[str | Turns, list[tuple[str, Turns]]]:
    """The prompt, and the columns' continuations; a system turn that starts all of them belongs to the prompt."""
    sides = [text_or_turns(row, name, origin) for name in names]
    systems = [side[:1] for side in sides if not isinstance(side, str) and side[0]["role"] == "system"]
    turns = as_turns(prompt)
    if len(systems) == len(sides) and systems.count(systems[0]) == len(sides) and turns[0]["role"] != "system":
        prompt = (*systems[0], *turns)
    return prompt, [_answer(side, prompt, name, origin) for side, name in zip(sides, names, strict=True)]


def _answer(value: str | Turns, prompt: str | Turns, column: str, origin: str) -> tuple[str, Turns]:
    """A completion as text and, if it is more than one text, as turns: alone or after the prompt."""
    if isinstance(value, str):
        return _filled(value, column, origin), ()
    asked = as_turns(prompt)
    openings = (asked, asked[1:]) if asked[0]["role"] == "system" else (asked,)
    rest = next((value[len(turns) :] for turns in openings if value[: len(turns)] == turns), value)
    roles = [turn["role"] for turn in rest]
    if not roles or (roles[0], roles[-1]) != ("assistant", "assistant") or ("assistant",) * 2 in pairwise(roles):
        raise InputError(
            f"data: {origin}, column '{column}' must be text or end in one assistant message, alone or after the prompt"
        )
    return _as_answer(rest, column, origin)


def _as_answer(turns: Turns, column: str, origin: str) -> tuple[str, Turns]:
    text = _filled(completion_text(turns), column, origin)
    return text, () if len(turns) == 1 and turns[0].keys() == {"role", "content"} else turns


def _filled(completion: str, column: str, origin: str) -> str:
    if not completion.strip():
        raise InputError(f"data: {origin} has an empty completion in '{column}'; fill it in or remove the row")
    return completion


def _shared_opening(
    sides: Sequence[str | Turns], columns: Sequence[str], origin: str, likely: str
) -> tuple[str | Turns, list[tuple[str, Turns]]]:
    """The common prompt of both sides of a pair, and each side's continuation."""
    transcripts = isinstance(sides[0], str)
    if isinstance(sides[1], str) != transcripts:
        raise InputError(f"data: {origin} has text on one side and a conversation on the other; use one form for both")
    chosen, rejected = (parse_transcript(side, origin, likely) if isinstance(side, str) else side for side in sides)
    opening = _shared_turns(chosen, rejected, origin)
    prompt = _ends_with_user(opening, origin)
    if transcripts:
        rests = (turns[len(prompt) :] for turns in (chosen, rejected))
        return prompt, [_as_answer(rest, name, origin) for rest, name in zip(rests, columns, strict=True)]
    return prompt, [_answer(side, prompt, name, origin) for side, name in zip(sides, columns, strict=True)]


def _shared_turns(chosen: Turns, rejected: Turns, origin: str) -> Turns:
    """The common opening, up to the last turn that the assistant answers and both sides continue."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1]["role"] not in ("user", "tool"):
        shared -= 1
    if not shared:
        raise InputError(f"data: {origin} has chosen and rejected that do not open with one user turn; give a prompt")
    return chosen[:shared]
