"""Rows read from a file, one by one.

Every failure is an `InputError` of one line that names the file or the row and says what to change.
"""

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

from alignrun.data.lists import ListError, list_elements
from alignrun.data.values import BadRowError, DuplicateKeyError, LargeRowError, Row, kind, load_json
from alignrun.errors import InputError, one_line

_JSON = (".jsonl", ".json")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_FIELD = 1 << 26
"""Characters; Python's own limit of 131,072 is shorter than a conversation may be."""
_MEGABYTE = 1_000_000
_UNPACKED, _UNPACKED_TIMES = 64 * _MEGABYTE, 100
"""A packed file may hold so many bytes, or so many times its own size: text packs to a third or a twentieth."""


def read_rows(path: Path, max_row_mb: float = 4.0) -> Iterator[tuple[str, Row | BadRowError]]:
    """Yield (origin, row) from a .jsonl, .json, .csv or .tsv file, with or without .gz after its name, or a .parquet.

    The origin is `name.jsonl:12` (the line, from 1; blank lines are skipped) or `name.json[12]` (the index of the row,
    from 0). The values of a CSV file are texts. In place of a row that is larger than `max_row_mb`, or that has a key
    twice, comes the error that says so. Raises InputError, while iterating, for a file that is missing, unreadable,
    damaged, empty or packed so tightly that it would fill the memory, and for a row that is not an object.
    """
    kind_of_file = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind_of_file == ".jsonl":
        values = _read_lines(path, max_row_mb)
    elif kind_of_file == ".json":
        values = _read_list(path, max_row_mb)
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
        if isinstance(value, dict):
            value = value if kind_of_file in _JSON else checked_row(value, origin, max_row_mb)
        elif not isinstance(value, BadRowError):
            raise InputError(f'data: {origin} is {kind(value)}; a row is a JSON object such as {{"prompt": "..."}}')
        empty = False
        yield origin, value
    if empty:
        raise InputError(f"data: {path} holds no rows; add some, or name another file")


def checked_row(row: Row, origin: str, max_row_mb: float) -> Row | BadRowError:
    """The row itself, or the error that says that it is larger than `max_row_mb`."""
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


class _Unpacked(io.RawIOBase):
    """What a packed file holds, as far as that is no more than a file of texts can hold."""

    def __init__(self, path: Path) -> None:
        self._file, self._path = gzip.GzipFile(path), path
        self._left = max(_UNPACKED, _UNPACKED_TIMES * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise InputError(
                f"data: {self._path} unpacks to more than {_UNPACKED_TIMES} times its size: that would fill the "
                "memory; if its rows are what you want, unpack it and name the unpacked file"
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


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
    return io.BufferedReader(_Unpacked(path), 1 << 20) if path.name.lower().endswith(".gz") else path.open("rb")


def _read_lines(path: Path, max_row_mb: float) -> Iterator[tuple[str, Any]]:
    hint = "a .jsonl file holds one JSON object a line"
    longest = int(max_row_mb * _MEGABYTE) + 2  # and the end of the line
    with _file_errors(path), _open(path) as file:
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
    with _file_errors(path), _open(path) as file:
        try:
            for index, content in enumerate(list_elements(file, int(max_row_mb * _MEGABYTE))):
                origin = f"{path.name}[{index}]"
                value = _too_large(origin, max_row_mb) if content is None else _decode(content, origin, hint)
                yield origin, value
        except ListError as error:
            raise InputError(f"data: {path} holds {error}; {hint}") from error


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
            batches = parquet.ParquetFile(file).iter_batches(batch_size=1024)
            rows = (row for batch in batches for row in _unpacked_rows(batch))
            yield from ((f"{path.name}[{index}]", row) for index, row in enumerate(rows))
        except pyarrow.ArrowException as error:
            raise InputError(f"data: {path} is a damaged parquet file ({one_line(error)}); fetch it again") from error


def _unpacked_rows(batch: Any) -> Iterator[Row]:
    """The rows of a batch; where they are large, one at a time."""
    size = batch.num_rows if batch.nbytes < _UNPACKED else 1
    for start in range(0, batch.num_rows, size or 1):
        yield from batch.slice(start, size).to_pylist()


def _decode(content: bytes, origin: str, hint: str) -> Any:
    """The value of a row, or the error that says that it has a key twice."""
    try:
        return load_json(content.removeprefix(codecs.BOM_UTF8).decode())  # several times as fast as utf-8-sig
    except DuplicateKeyError as error:
        return BadRowError(f"data: {origin}: {error}, and readers differ in which of the values they take; remove one")
    except UnicodeDecodeError as error:
        raise InputError(f"data: {origin} is not UTF-8 ({one_line(error)}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"data: {origin} is not JSON ({one_line(error)}); {hint}") from error
