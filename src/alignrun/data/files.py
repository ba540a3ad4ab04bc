"""Rows read from a file, one by one.

Every failure is an `InputError` of one line that names the file or the row and the way to mend it.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignrun.data.values import Row, kind
from alignrun.errors import InputError, one_line


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
            raise InputError(f'data: {origin} is {kind(value)}; a row is a JSON object such as {{"prompt": "..."}}')
        empty = False
        yield origin, value
    if empty:
        raise InputError(f"data: {path} holds no rows; add some, or name another file")


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
        raise InputError(f"data: {path} holds {kind(values)}; {hint}")
    yield from ((f"{path.name}[{index}]", value) for index, value in enumerate(values))


def _decode(content: bytes, where: str, hint: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"data: {where} is not UTF-8 ({one_line(error)}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"data: {where} is not JSON ({one_line(error)}); {hint}") from error
