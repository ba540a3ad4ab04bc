"""The values that a row may hold: text, or a list of messages."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignrun.errors import InputError
from alignrun.types import Message


class DuplicateKeyError(ValueError):
    """A JSON object with a duplicate key: parsers differ in which value they keep."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"an object has the key '{key[:40]}' twice")


Row = dict[str, Any]
Turns = tuple[Message, ...]

ROLES = ("system", "user", "assistant", "tool", "developer")
_OTHER_ROLES = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function_response"), "tool"),
}
"""The names of roles in ShareGPT's form."""
_HANDED_ON = ("name", "tool_calls", "tool_call_id", "reasoning_content")
"""Fields of a message for the chat template besides role and content."""
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_PROMPT_NAMES = ("instruction", "question", "query", "text", "input")
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
_KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}


class BadRowError(InputError):
    """A row that cannot be used, and that `data.bad_rows=skip` leaves out."""


class LargeRowError(BadRowError):
    """A row over `data.max_row_mb`, which `data.too_long=skip` leaves out."""


def kind(value: object) -> str:
    """The kind of a JSON value, in words."""
    return _KINDS.get(type(value), "an object")


def require_column(row: Row, role: str, column: str, origin: str) -> None:
    """Raise InputError unless the row has the column that `data.columns.{role}` names."""
    if column not in row:
        likely = likely_prompt(row) if role == "prompt" else "..."
        present = ", ".join(row) or "none"
        raise InputError(
            f"data: {origin} has no column '{column}' (columns: {present}); name it with data.columns.{role}={likely}"
        )


def likely_prompt(row: Row) -> str:
    """The column that may hold a row's prompt, for an error message."""
    return next((known for known in _PROMPT_NAMES if known in row), "...")


def text_or_turns(row: Row, column: str, origin: str) -> str | Turns:
    """The value of a column. Raises InputError for anything but text and messages of a known role.

    A message is {role, content}, or {from, value} with the roles human and gpt; a single one becomes a list.
    """
    value = row[column]
    where = f"{origin}, column '{column}'"
    if isinstance(value, str):
        return checked_text(value, where)
    if isinstance(value, dict) and _is_message(value):
        return (_message(value, where),)
    if not isinstance(value, list):
        raise InputError(f"data: {where} is {kind(value)}; it must be text or a list of messages")
    if not value:
        raise InputError(f"data: {where} is an empty list; remove the row or give it messages")
    return tuple(_message(turn, f"{where}, message {number}") for number, turn in enumerate(value, 1))


def tools_of(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """The tools that a row offers: a list of objects, or that list as JSON. Raises InputError for anything else."""
    if isinstance(value, str):
        try:
            value = load_json(value) if value.strip() else []
        except (ValueError, RecursionError) as error:
            raise InputError(f"data: {where} is not JSON ({error}); give the tools as a list of objects") from error
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise InputError(f"data: {where} is {kind(value)}; give the tools as a list of objects")
    return tuple(without_nulls(tool) for tool in value)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of such pairs. Raises DuplicateKeyError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


_decode = json.JSONDecoder(object_pairs_hook=unique_keys).decode  # building one takes longer than decoding a short row


def load_json(text: str) -> Any:
    """The value of a JSON text. Raises DuplicateKeyError, ValueError or RecursionError."""
    return _decode(text)


def without_nulls(value: Any) -> Any:
    """A nested value without null keys: tables give every row the keys of all others."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def checked_text(value: str, where: str) -> str:
    """The text. Raises InputError for a lone surrogate."""
    if has_half_a_pair(value):
        raise InputError(f"data: {where} holds half of a surrogate pair; remove that character")
    return value


def has_half_a_pair(value: str) -> bool:
    """Whether a text contains a lone surrogate."""
    # JSON can spell one (\ud83d), and no tokenizer and no hash accepts it.
    return not value.isascii() and _HALF_A_PAIR.search(value) is not None


def _is_message(value: Mapping[str, Any]) -> bool:
    return {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or not (_is_message(value) or (value.get("role") and value.get("tool_calls"))):
        found = f"an object of {', '.join(value)}" if isinstance(value, dict) and value else kind(value)
        raise InputError(f'data: {where} is {found}; a message is {{"role": "user", "content": "..."}}')
    role, content = (value["role"], value.get("content")) if "role" in value else (value["from"], value["value"])
    called = _calls(content, where) if role == "function_call" and "tool_calls" not in value else None
    role = _OTHER_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise InputError(f"data: {where} has the unknown role {role!r}; the roles are {', '.join(ROLES)}")
    for media in _MEDIA:
        if value.get(media):
            raise InputError(f"data: {where} has '{media}', and a language model reads text; remove the row")
    if value.get("weight", 1) not in (1, None):
        raise InputError(f"data: {where} has a weight of {value['weight']}; all answers count equally: remove it")
    message: Any = {"role": role, "content": None}
    message |= {key: without_nulls(value[key]) for key in _HANDED_ON if value.get(key)}
    if called:
        message["tool_calls"] = called
    elif content is not None or "tool_calls" not in message:
        message["content"] = _content(content, where)
    checked: Message = message
    return checked


def _calls(content: Any, where: str) -> list[dict[str, Any]]:
    """The tool calls that ShareGPT's role function_call holds as JSON: one or a list of {name, arguments}."""
    try:
        calls = load_json(content) if isinstance(content, str) else content
    except (ValueError, RecursionError) as error:
        raise InputError(f"data: {where} calls a function, and is not JSON ({error}); correct or remove it") from error
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise InputError(f'data: {where} calls a function; write {{"name": "...", "arguments": {{}}}}')
    return [{"type": "function", "function": without_nulls(call)} for call in calls]


def _content(content: Any, where: str) -> str:
    """The text of a message, which may consist of parts."""
    if isinstance(content, str):
        return checked_text(content, where)
    if not isinstance(content, Sequence) or not content:
        raise InputError(f"data: {where} has {kind(content)} for its content; it must be text")
    texts = []
    for number, part in enumerate(content, 1):
        held = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(held, str):
            what = f"of type '{part['type']}'" if isinstance(part, dict) and part.get("type") else kind(part)
            raise InputError(f"data: {where}, part {number} is {what}; only text is read: remove the part or the row")
        texts.append(checked_text(held, where))
    return "".join(texts)
