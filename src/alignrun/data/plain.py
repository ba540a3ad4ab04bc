"""Rows of plain text in columns that need no second look, as most are: read several times as fast as others."""

from collections.abc import Callable
from functools import lru_cache

from alignrun.config import ColumnsConfig
from alignrun.data.columns import CONVERSATIONS, LIKED, Wanted, changes_meaning, kept_columns
from alignrun.data.records import parse_row
from alignrun.data.store import Record, record_of
from alignrun.data.values import Row, has_half_a_pair

_SHAPES = 256


def row_reader(columns: ColumnsConfig, wanted: Wanted = ()) -> Callable[[Row, str], Record]:
    """Reads a row and its origin exactly as `parse_row` does; raises as that does."""
    plain = lru_cache(_SHAPES)(lambda names: plain_columns(names, columns, wanted))

    def read(row: Row, origin: str) -> Record:
        read_from = plain(tuple(row))
        if read_from is not None:
            texts = [row[name] for name in read_from]
            if all(map(_is_plain, texts)) and (len(texts) < 3 or texts[1].strip() != texts[2].strip()):
                return (texts[0], origin, *texts[1:])
        return record_of(parse_row(row, origin, columns, wanted))

    return read


def plain_columns(names: tuple[str, ...], columns: ColumnsConfig, wanted: Wanted = ()) -> tuple[str, ...] | None:
    """The columns of the prompt and its completions in rows of these columns.

    None where it depends on their values, and where more than texts is wanted of them.
    """
    prompt, pair, completion = columns.prompt, (columns.chosen, columns.rejected), columns.completion
    judged = columns.label is not None or columns.votes or not set(LIKED).isdisjoint(names)
    wrapped = columns.input is not None or columns.tools in names or columns.system in names
    moved = columns.system not in (None, ColumnsConfig.system)
    spoken = columns.messages in names or CONVERSATIONS in names
    alike = len({prompt, *pair, completion}) < 4
    more = kept_columns(names, (prompt, *pair, completion), columns, wanted)
    if more or judged or wrapped or moved or spoken or alike or prompt not in names or changes_meaning(names):
        return None
    if any(column in names for column in pair):
        return (prompt, *pair) if all(column in names for column in pair) else None
    return (prompt, completion) if completion in names else (prompt,)


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and bool(value) and not value.isspace() and not has_half_a_pair(value)
