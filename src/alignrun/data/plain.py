"""A fast path for the most common rows, plain text in known columns."""

from alignrun.config import ColumnsConfig
from alignrun.data.columns import CONVERSATIONS, LIKED, Wanted, changes_meaning, kept_columns
from alignrun.data.records import parse_row
from alignrun.data.store import Record, record_of
from alignrun.data.values import Row, has_half_a_pair

_SHAPES = 256


class RowReader:
    """Reads rows exactly as `parse_row` does, and records their columns."""

    def __init__(self, columns: ColumnsConfig, wanted: Wanted = ()) -> None:
        self.names: set[str] = set()
        """The columns of all rows."""
        self._columns, self._wanted = columns, wanted
        self._shapes: dict[tuple[str, ...], tuple[str, ...] | None] = {}

    def __call__(self, row: Row, origin: str) -> Record:
        """The example of a row. Raises as `parse_row` does."""
        shape = tuple(row)
        if shape not in self._shapes:
            self._remember(shape)
        read_from = self._shapes[shape]
        if read_from is not None:
            texts = [row[name] for name in read_from]
            for text in texts:
                if not _is_plain(text):
                    break
            else:
                if len(texts) < 3 or texts[1].strip() != texts[2].strip():
                    return (texts[0], origin, *texts[1:])
        return record_of(parse_row(row, origin, self._columns, self._wanted))

    def _remember(self, shape: tuple[str, ...]) -> None:
        self.names.update(shape)
        if len(self._shapes) >= _SHAPES:  # bound the cache: every row may have other columns
            self._shapes.clear()
        self._shapes[shape] = plain_columns(shape, self._columns, self._wanted)


def plain_columns(names: tuple[str, ...], columns: ColumnsConfig, wanted: Wanted = ()) -> tuple[str, ...] | None:
    """The columns of the prompt and its completions in rows with these columns.

    None if that depends on their values, or if more than texts is wanted.
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
    return isinstance(value, str) and value != "" and not value.isspace() and not has_half_a_pair(value)
