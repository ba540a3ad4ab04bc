"""Rows read from a file, one by one.

Every failure is an `InputError` of one line that names the file or the row and says what to change.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from alignrun.data.values import Row, kind
from alignrun.errors import InputError, one_line

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_FIELD = 1 << 30
"""Characters; Python's own limit of 131,072 is shorter than a conversation may be."""


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (origin, row) from a .jsonl, .json, .csv or .tsv file, with or without .gz after its name, or a .parquet.

    The origin is `name.jsonl:12` (the line, from 1; blank lines are skipped) or `name.json[12]` (the index of the row,
    from 0). The values of a CSV file are texts. Raises InputError, while iterating, for a file that is missing,
    unreadable, damaged or empty, and for a row that is not an object.
    """
    kind_of_file = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind_of_file == ".jsonl":
        values = _read_lines(path)
    elif kind_of_file == ".json":
        values = _read_list(path)
    elif kind_of_file in _DELIMITERS:
        values = _read_csv(path, _DELIMITERS[kind_of_file])
    elif path.name.lower().endswith(".parquet"):
        values = _read_parquet(path)
    else:
        raise InputError(
            f"data: {path} is of an unknown kind; the name must end in .jsonl, .json, .csv or .tsv (each "
            "also .gz), or .parquet"
        )
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


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with _file_errors(path), _open(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                origin = f"{path.name}:{number}"
                yield origin, _decode(line, origin, "a .jsonl file holds one JSON object a line")


def _read_list(path: Path) -> Iterator[tuple[str, Any]]:
    with _file_errors(path), _open(path) as file:
        content = file.read()
    hint = "a .json file holds one list of rows; a file of one row a line is named .jsonl"
    values = _decode(content, str(path), hint) if content.strip() else []
    if not isinstance(values, list):
        raise InputError(f"data: {path} holds {kind(values)}; {hint}")
    yield from ((f"{path.name}[{index}]", value) for index, value in enumerate(values))


def _read_csv(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    with _file_errors(path), _open(path) as file:
        limit = csv.field_size_limit(_LONGEST_FIELD)
        try:
            reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
            names = next(reader, [])
            if len(set(names)) < len(names) or not all(names):
                raise InputError(f"data: {path} has a column without a name, or two alike; correct its first line")
            for values in filter(None, reader):
                origin = f"{path.name}:{reader.line_num}"
                if len(values) != len(names):
                    raise InputError(
                        f"data: {origin} has {len(values)} values, and the first line names {len(names)} columns; "
                        "put texts that hold the separator or a line break in double quotes"
                    )
                yield origin, dict(zip(names, values, strict=True))
        except UnicodeDecodeError as error:
            raise InputError(f"data: {path} is not UTF-8 ({one_line(error)}); save the file as UTF-8") from error
        except csv.Error as error:
            raise InputError(f"data: {path} is not such a table ({one_line(error)}); check its quotes") from error
        finally:
            csv.field_size_limit(limit)


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]  # here, since most runs need no such file
    from pyarrow import parquet

    with _file_errors(path), path.open("rb") as file:
        try:
            batches = parquet.ParquetFile(file).iter_batches()
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"{path.name}[{index}]", row) for index, row in enumerate(rows))
        except pyarrow.ArrowException as error:
            raise InputError(f"data: {path} is a damaged parquet file ({one_line(error)}); fetch it again") from error


def _decode(content: bytes, where: str, hint: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"data: {where} is not UTF-8 ({one_line(error)}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"data: {where} is not JSON ({one_line(error)}); {hint}") from error
