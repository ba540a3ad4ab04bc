"""The values that a row may hold: text, or a list of messages."""

from typing import Any

from alignrun.errors import InputError
from alignrun.types import Message

Row = dict[str, Any]
Turns = tuple[Message, ...]

ROLES = ("system", "user", "assistant")
_PROMPT_NAMES = ("instruction", "question", "query", "text", "input")
_KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "an object")


def require_column(row: Row, role: str, column: str, origin: str) -> None:
    """Raise InputError unless the row has the column that `data.columns.{role}` names."""
    if column not in row:
        likely = next((known for known in _PROMPT_NAMES if role == "prompt" and known in row), "...")
        present = ", ".join(row) or "none"
        raise InputError(
            f"data: {origin} has no column '{column}' (columns: {present}); name it with data.columns.{role}={likely}"
        )


def text_or_turns(row: Row, column: str, origin: str) -> str | Turns:
    """The value of a column. Raises InputError for anything but text and messages of a known role."""
    value = row[column]
    where = f"{origin}, column '{column}'"
    if isinstance(value, str):
        return checked_text(value, where)
    if not isinstance(value, list):
        raise InputError(f"data: {where} is {kind(value)}; it must be text or a list of messages")
    if not value:
        raise InputError(f"data: {where} is an empty list; remove the row or give it messages")
    return tuple(_message(turn, f"{where}, message {number}") for number, turn in enumerate(value, 1))


def checked_text(value: str, where: str) -> str:
    """The text itself. Raises InputError for half a surrogate pair."""
    # JSON can spell half a surrogate pair (\ud83d), which no tokenizer and no hash accepts.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"data: {where} holds half of a surrogate pair; remove that character")
    return value


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        found = f"an object of {', '.join(value)}" if isinstance(value, dict) and value else kind(value)
        raise InputError(f'data: {where} is {found}; a message is {{"role": "user", "content": "..."}}')
    role, content = value["role"], value["content"]
    if role not in ROLES:
        raise InputError(f"data: {where} has the unknown role {role!r}; the roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise InputError(f"data: {where} has {kind(content)} for its content; it must be text")
    return {"role": role, "content": checked_text(content, where)}
