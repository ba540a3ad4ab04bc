"""Rows of a data set: read from a file, checked, and turned into `Example`.

Every failure is an `InputError` of one line that names the file or the row and the way to mend it.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignrun.config import ColumnsConfig
from alignrun.errors import InputError, one_line
from alignrun.types import Example, Message

Row = dict[str, Any]
Turns = tuple[Message, ...]

ROLES = ("system", "user", "assistant")
_PROMPT_NAMES = ("instruction", "question", "query", "text", "input")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_KINDS = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (origin, row) from a .jsonl, .jsonl.gz or .json file.

    The origin is `name.jsonl:12` (the line, from 1; blank lines are skipped) or `name.json[12]` (the index in the
    list, from 0). Raises InputError, while iterating, for a file that is missing, unreadable, damaged or empty, and
    for a row that is not a JSON object.
    """
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        values = _read_lines(path)
    elif name.endswith(".json"):
        values = _read_list(path)
    else:
        raise InputError(f"data: {path} is of an unknown kind; the name must end in .jsonl, .jsonl.gz or .json")
    empty = True
    for origin, value in values:
        if not isinstance(value, dict):
            raise InputError(f'data: {origin} is {_kind(value)}; a row is a JSON object such as {{"prompt": "..."}}')
        empty = False
        yield origin, value
    if empty:
        raise InputError(f"data: {path} holds no rows; add some, or name another file")


def parse_row(row: Row, origin: str, columns: ColumnsConfig) -> Example:
    """Turn a row into an example.

    Accepted: a prompt alone; prompt, chosen and rejected; chosen and rejected that share their opening turns, as
    conversations or as Human/Assistant transcripts (HH-RLHF). Text or a list of {role, content} in every column.
    Raises InputError for a missing column, a wrong type, an unknown role, or a prompt that is blank or does not end
    with the user.
    """
    has_pair = columns.chosen in row or columns.rejected in row
    # A prompt may hide in the pair, but not where the user has named the column that it should come from.
    implicit = has_pair and columns.prompt not in row and columns.prompt == ColumnsConfig.prompt
    wanted = {} if implicit else {"prompt": columns.prompt}
    if has_pair:
        wanted |= {"chosen": columns.chosen, "rejected": columns.rejected}
    for role, name in wanted.items():
        if name not in row:
            raise _missing(row, role, name, origin)
    if not has_pair:
        return Example(_as_prompt(_value(row, columns.prompt, origin), origin), origin)
    chosen = _value(row, columns.chosen, origin)
    rejected = _value(row, columns.rejected, origin)
    if not implicit:
        prompt = _as_prompt(_value(row, columns.prompt, origin), origin)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        return _from_transcripts(chosen, rejected, origin)
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise InputError(f"data: {origin} has text on one side and a conversation on the other; write both alike")
    else:
        prompt = _as_prompt(_shared_turns(chosen, rejected, origin), origin)
    return Example(
        prompt,
        origin,
        chosen=_as_completion(chosen, prompt, columns.chosen, origin),
        rejected=_as_completion(rejected, prompt, columns.rejected, origin),
    )


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turn what the file system and gzip raise into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"data: there is no file {path}; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"data: {path} is a directory; name a file inside it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"data: {path} is a damaged gzip file ({one_line(error)}); fetch it again") from error
    except OSError as error:
        raise InputError(f"data: {path} cannot be read ({one_line(error)})") from error


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with _file_errors(path), gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                origin = f"{path.name}:{number}"
                yield origin, _decode(line, origin, "a .jsonl file holds one JSON object a line")


def _read_list(path: Path) -> Iterator[tuple[str, Any]]:
    with _file_errors(path):
        content = path.read_bytes()
    hint = "a .json file holds one list of rows; a file of one row a line is named .jsonl"
    values = _decode(content, str(path), hint) if content.strip() else []
    if not isinstance(values, list):
        raise InputError(f"data: {path} holds {_kind(values)}; {hint}")
    yield from ((f"{path.name}[{index}]", value) for index, value in enumerate(values))


def _decode(content: bytes, where: str, hint: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"data: {where} is not UTF-8 ({one_line(error)}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"data: {where} is not JSON ({one_line(error)}); {hint}") from error


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "an object")


def _missing(row: Row, role: str, name: str, origin: str) -> InputError:
    likely = next((known for known in _PROMPT_NAMES if role == "prompt" and known in row), "...")
    present = ", ".join(row) or "none"
    return InputError(
        f"data: {origin} has no column '{name}' (columns: {present}); name it with data.columns.{role}={likely}"
    )


def _value(row: Row, column: str, origin: str) -> str | Turns:
    value = row[column]
    where = f"{origin}, column '{column}'"
    if isinstance(value, str):
        return _text(value, where)
    if not isinstance(value, list):
        raise InputError(f"data: {where} is {_kind(value)}; it must be text or a list of messages")
    if not value:
        raise InputError(f"data: {where} is an empty list; remove the row or give it messages")
    return tuple(_message(turn, f"{where}, message {number}") for number, turn in enumerate(value, 1))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        found = f"an object of {', '.join(value)}" if isinstance(value, dict) and value else _kind(value)
        raise InputError(f'data: {where} is {found}; a message is {{"role": "user", "content": "..."}}')
    role, content = value["role"], value["content"]
    if role not in ROLES:
        raise InputError(f"data: {where} has the unknown role {role!r}; the roles are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise InputError(f"data: {where} has {_kind(content)} for its content; it must be text")
    return {"role": role, "content": _text(content, where)}


def _text(value: str, where: str) -> str:
    # JSON can spell half a surrogate pair (\ud83d), which no tokenizer and no hash accepts.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"data: {where} holds half of a surrogate pair; remove that character")
    return value


def _as_prompt(value: str | Turns, origin: str) -> str | Turns:
    if not isinstance(value, str) and value[-1]["role"] != "user":
        raise InputError(f"data: {origin} has a prompt that ends with the {value[-1]['role']}; end it with the user")
    if not (value if isinstance(value, str) else value[-1]["content"]).strip():
        raise InputError(f"data: {origin} has an empty prompt; fill it in or remove the row")
    return value


def _as_completion(value: str | Turns, prompt: str | Turns, column: str, origin: str) -> str:
    if isinstance(value, str):
        return value
    opening = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    if value[-1]["role"] != "assistant" or value[:-1] not in ((), opening):
        raise InputError(
            f"data: {origin}, column '{column}' must be text or end in one assistant message, alone or after the prompt"
        )
    return value[-1]["content"]


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


def _from_transcripts(chosen: str, rejected: str, origin: str) -> Example:
    first, second = _transcript(chosen, origin), _transcript(rejected, origin)
    prompt = _shared_turns(first, second, origin)
    _as_prompt(prompt, origin)
    size = len(prompt)
    return Example(prompt, origin, chosen=_rest(first[size:]), rejected=_rest(second[size:]))


def _transcript(text: str, origin: str) -> Turns:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ...", each stripped."""
    head, *pieces = _SPEAKER.split("\n\n" + text.lstrip())
    if head.strip() or not pieces:
        raise InputError(
            f"data: {origin} has no prompt column, and its pair is no transcript of Human: and Assistant: turns; "
            "name the prompt with data.columns.prompt=..."
        )
    turns: list[Message] = []
    for speaker, content in zip(pieces[::2], pieces[1::2], strict=True):
        role = _SPEAKERS[speaker]
        # Some HH-RLHF rows let one side speak twice; most chat templates insist that the roles alternate.
        if turns and turns[-1]["role"] == role:
            content = f"{turns.pop()['content']}\n\n{content.strip()}"
        turns.append({"role": role, "content": content.strip()})
    return tuple(turns)


def _rest(turns: Turns) -> str:
    """A completion: where two transcripts part early, the later turns were judged with it and stay in its text."""
    names = {role: speaker for speaker, role in _SPEAKERS.items()}
    later = (f"{names[turn['role']]}: {turn['content']}" for turn in turns[1:])
    return "\n\n".join((turns[0]["content"], *later))
