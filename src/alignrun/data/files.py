"""Read rows from a file, one by one.

Every failure is an `InputError` of one line that names the file or the row and says what to change.
"""

import codecs
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from alignrun.data.lists import ListError, list_elements
from alignrun.data.opening import file_errors, open_packed
from alignrun.data.tables import DELIMITERS, is_saved, read_csv, read_parquet, read_saved
from alignrun.data.values import BadRowError, DuplicateKeyError, LargeRowError, Row, kind, load_json
from alignrun.errors import InputError, one_line

_JSON = (".jsonl", ".json")
_MEGABYTE = 1_000_000


def read_rows(path: Path, max_row_mb: float = 4.0) -> Iterator[tuple[str, Row | BadRowError]]:
    """Yield (origin, row) from a file, or from a folder that `save_to_disk` of the library datasets wrote.

    A file is a .jsonl, .json, .csv or .tsv, with or without .gz after its name, or a .parquet. The origin is
    `name.jsonl:12` (the line, from 1; blank lines are skipped) or `name.json[12]` (the index of the row, from 0). The
    values of a CSV file are texts, or messages where they hold a JSON list of them. A row that is not a
    JSON object, has a duplicate key or is larger than `max_row_mb` is replaced by its error. Raises InputError, while
    iterating, for a file that is missing, unreadable, damaged, empty or compressed so much that it would fill the
    memory.
    """
    kind_of_file = Path(path.name.lower().removesuffix(".gz")).suffix
    if is_saved(path):
        values = read_saved(path)
    elif kind_of_file == ".jsonl":
        values = _read_lines(path, max_row_mb)
    elif kind_of_file == ".json":
        values = _read_list(path, max_row_mb)
    elif kind_of_file in DELIMITERS:
        values = read_csv(path, DELIMITERS[kind_of_file])
    elif path.name.lower().endswith(".parquet"):
        values = read_parquet(path)
    else:
        raise InputError(
            f"data: {path} is of an unknown kind; the name must end in .jsonl, .json, .csv or .tsv (each "
            "also .gz), or .parquet, or be a folder of save_to_disk"
        )
    empty = True
    for origin, value in values:
        if isinstance(value, dict):
            value = value if kind_of_file in _JSON else checked_row(value, origin, max_row_mb)
        elif not isinstance(value, BadRowError):
            value = BadRowError(f'data: {origin} is {kind(value)}; a row is a JSON object such as {{"prompt": "..."}}')
        empty = False
        yield origin, value
    if empty:
        raise InputError(f"data: {path} holds no rows; add some, or name another file")


def checked_row(row: Row, origin: str, max_row_mb: float) -> Row | BadRowError:
    """The row, or an error if it is larger than `max_row_mb`."""
    size, parts = 0, [row]  # no recursion: a row may be nested deeply
    while parts:
        part: Any = parts.pop()
        if isinstance(part, dict):
            parts += [*part, *part.values()]
        elif isinstance(part, list):
            parts += part
        elif isinstance(part, str):
            size += len(part if part.isascii() else part.encode("utf-8", "surrogatepass"))
        else:
            size += len(part) if isinstance(part, bytes) else 1
    return _too_large(origin, max_row_mb) if size > max_row_mb * _MEGABYTE else row


def _too_large(origin: str, max_row_mb: float) -> LargeRowError:
    return LargeRowError(
        f"data: {origin} is larger than data.max_row_mb={max_row_mb:g}; shorten it, or raise the limit"
    )


def _read_lines(path: Path, max_row_mb: float) -> Iterator[tuple[str, Any]]:
    hint = "a .jsonl file holds one JSON object a line"
    longest = int(max_row_mb * _MEGABYTE) + 2  # plus the end of the line
    with file_errors(path), open_packed(path) as file:
        for number in count(1):
            line = file.readline(longest)
            if not line:
                return
            origin = f"{path.name}:{number}"
            if len(line) == longest and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = file.readline(longest)
                yield origin, _too_large(origin, max_row_mb)
            elif not line.isspace():
                yield origin, _decode(line, origin, hint)


def _read_list(path: Path, max_row_mb: float) -> Iterator[tuple[str, Any]]:
    hint = "a .json file holds one list of rows; a file of one row a line is named .jsonl"
    with file_errors(path), open_packed(path) as file:
        try:
            for index, content in enumerate(list_elements(file, int(max_row_mb * _MEGABYTE))):
                origin = f"{path.name}[{index}]"
                value = _too_large(origin, max_row_mb) if content is None else _decode(content, origin, hint)
                yield origin, value
        except ListError as error:
            raise InputError(f"data: {path} holds {error}; {hint}") from error


def _decode(content: bytes, origin: str, hint: str) -> Any:
    """The value of a row, or an error if it cannot be read."""
    try:
        return load_json(content.removeprefix(codecs.BOM_UTF8).decode())  # several times faster than utf-8-sig
    except DuplicateKeyError as error:
        return BadRowError(f"data: {origin}: {error}, and readers differ in which of the values they take; remove one")
    except UnicodeDecodeError as error:
        return BadRowError(f"data: {origin} is not UTF-8 ({one_line(error)}); save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return BadRowError(f"data: {origin} is not JSON ({one_line(error)}); {hint}")
