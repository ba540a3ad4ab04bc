"""Splits a table that is wider than the terminal into several narrower ones below each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

HEADING = 14
"""The width up to which a heading is not broken into lines."""
FRAME = 3
"""The width of a column besides its text: a space on either side and a border."""


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and a cell for every row."""

    title: str
    cells: Sequence[str]

    @property
    def width(self) -> int:
        """The width of the column: headings may be broken into lines, cells only if they must."""
        lines = (line for cell in self.cells for line in cell.split("\n"))
        return max((min(cell_len(self.title), HEADING), *map(cell_len, lines)))


def fitted(title: str, names: Sequence[str], columns: Sequence[Column], width: int, corner: str = "") -> list[Table]:
    """Tables at most `width` wide, each with the row names and as many columns as fit, in order.

    A name or cell that is too wide by itself is broken into lines. Nothing is omitted.
    """
    head = min(max(map(cell_len, names), default=0), max(width // 3, 8))
    tables: list[Table] = []
    for group in _groups(columns, width - head - FRAME - 1):
        table = Table(
            title=Text(f"{title} (continued)".strip() if tables else title) if title or tables else None,
            title_justify="left",
            caption_justify="left",
        )
        table.add_column(corner, width=head, overflow="fold")
        for column in group:
            most = width - head - 2 * FRAME - 1
            heading = Text(column.title, overflow="fold")
            table.add_column(heading, justify="right", overflow="fold", width=max(min(column.width, most), 1))
        for place, name in enumerate(names):
            table.add_row(Text(name), *(Text(column.cells[place]) for column in group))
        tables.append(table)
    return tables


def _groups(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """The columns in groups that fit the width."""
    group: list[Column] = []
    for column in columns:
        if group and sum(one.width + FRAME for one in (*group, column)) > width:
            yield group
            group = []
        group.append(column)
    yield group
