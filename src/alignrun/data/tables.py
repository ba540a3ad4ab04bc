"""Rows of tables: CSV and TSV, Parquet, and the folders of `datasets.save_to_disk`."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alignrun.data.opening import UNPACKED, file_errors, open_packed
from alignrun.data.values import BadRowError, Row, load_json
from alignrun.errors import InputError, one_line
from alignrun.security.files import read_json

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_FIELD = 1 << 26
"""Characters; Python's own limit of 131,072 is shorter than a conversation may be."""
_STATE, _SPLITS = "state.json", "dataset_dict.json"
"""The files that mark a folder of `save_to_disk`: with one split, and with several."""
_MESSAGES = re.compile(r"""\s*(?:\[\s*)?\{\s*['"](role|content|from|value)['"]\s*:.*[]}]\s*""", re.DOTALL)
"""A message or a list of messages, in JSON or Python syntax."""


def read_csv(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    """The rows of a CSV or TSV table, each with its line. Raises InputError for a damaged table."""
    with file_errors(path), open_packed(path) as file:
        limit = csv.field_size_limit(_LONGEST_FIELD)
        try:
            reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
            names = next(reader, [])
            if len(set(names)) < len(names) or not all(names):
                raise InputError(f"data: {path} has a column without a name, or two equal ones; correct its first line")
            for values in filter(None, reader):
                origin = f"{path.name}:{reader.line_num}"
                if len(values) != len(names):
                    yield (
                        origin,
                        BadRowError(
                            f"data: {origin} has {len(values)} values, and the first line names {len(names)} columns; "
                            "put texts that hold the separator or a line break in double quotes"
                        ),
                    )
                    continue
                try:
                    yield origin, {name: _cell(value) for name, value in zip(names, values, strict=True)}
                except (ValueError, RecursionError) as error:
                    yield (
                        origin,
                        BadRowError(
                            f"data: {origin} holds messages that are not JSON ({one_line(error, 80)}); save the "
                            "data set as JSON Lines or Parquet, which keep lists, or write them with json.dumps"
                        ),
                    )
        except UnicodeDecodeError as error:
            raise InputError(f"data: {path} is not UTF-8 ({one_line(error)}); save the file as UTF-8") from error
        except csv.Error as error:
            raise InputError(f"data: {path} is not such a table ({one_line(error)}); check its quotes") from error
        finally:
            csv.field_size_limit(limit)


def _cell(text: str) -> Any:
    """The messages written in a text, since a table has no lists; any other text unchanged.

    Raises ValueError or RecursionError for messages that are not JSON.
    """
    return load_json(text) if _MESSAGES.fullmatch(text) else text


def read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a Parquet file, each with its index. Raises InputError for a damaged file."""
    import pyarrow  # type: ignore[import-untyped]  # here, since most runs need no such file
    from pyarrow import parquet

    with file_errors(path), path.open("rb") as file:
        try:
            batches = parquet.ParquetFile(file).iter_batches(batch_size=1024)
            yield from _numbered(path, batches)
        except pyarrow.ArrowException as error:
            raise InputError(f"data: {path} is a damaged parquet file ({one_line(error)}); fetch it again") from error


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of the library datasets wrote a folder."""
    return any((path / name).is_file() for name in (_STATE, _SPLITS))


def read_saved(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a data set that `save_to_disk` wrote, each with its index, a batch at a time.

    Raises InputError for several splits, of which one must be named, and for a folder that is damaged.
    """
    if not (path / _STATE).is_file():
        splits = sorted(part.parent.name for part in path.glob(f"*/{_STATE}"))
        first = splits[0] if splits else "SPLIT"
        raise InputError(
            f"data: {path} holds the splits {', '.join(splits) or 'of a data set'}; name one, as "
            f"data.path={path / first}, and held-out rows with data.eval_path"
        )
    advice = "save the data set again"
    state = read_json(path / _STATE, advice)
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
        selected = bool(state.get("_indices_files") or state.get("_indices_data_files"))
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(f"data: {path / _STATE} does not name the files of a data set; {advice}") from error
    if selected or any(name != Path(name).name for name in names):
        raise InputError(f"data: {path} keeps its rows in files of another place; {advice}, after flatten_indices()")
    yield from _numbered(path, (batch for name in names for batch in _arrow_batches(path / name)))


def _arrow_batches(file: Path) -> Iterator[Any]:
    import pyarrow

    with file_errors(file), file.open("rb") as opened:
        try:
            yield from pyarrow.ipc.open_stream(opened)
        except pyarrow.ArrowException as error:
            raise InputError(f"data: {file} is a damaged Arrow file ({one_line(error)}); fetch it again") from error


def _numbered(path: Path, batches: Iterable[Any]) -> Iterator[tuple[str, Row]]:
    rows = (row for batch in batches for row in _unpacked_rows(batch))
    yield from ((f"{path.name}[{index}]", row) for index, row in enumerate(rows))


def _unpacked_rows(batch: Any) -> Iterator[Row]:
    """The rows of a batch; large ones one at a time."""
    size = batch.num_rows if batch.nbytes < UNPACKED else 1
    for start in range(0, batch.num_rows, size or 1):
        yield from batch.slice(start, size).to_pylist()
