"""The usable rows of a data set as token ids: encoded at the start, or on demand if there are many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Generic, TypeVar, overload

from alignrun.config import BadRows
from alignrun.data.limits import encode_rows
from alignrun.data.skips import Skips
from alignrun.data.store import kinds_of
from alignrun.data.values import BadRowError
from alignrun.errors import InputError, RunError
from alignrun.security.text import counted
from alignrun.types import Example

Encoded = TypeVar("Encoded")
Item = TypeVar("Item")

MANY = 10_000
"""The number of rows up to which all are encoded at the start; more would take too long."""
_LOOKED_AT = 1000
"""The number of rows encoded at the start, to find errors that affect all or most rows."""
_KEPT = 4096
_PASSED_OVER = 1000
"""The number of consecutive unusable rows after which drawing fails."""


@dataclass(frozen=True, slots=True)
class Selected(Generic[Encoded]):
    """The rows that are used."""

    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    read: int
    """The number of checked rows that the tokenizer could read."""
    skipped: int = 0
    """The number of rows left out because they were too long, if all were checked."""
    refused: Skips = field(default_factory=Skips)
    """The number of rows left out because the template or the tokenizer refuses them, if all were checked."""


def encodable(
    examples: Sequence[Example],
    encode: Callable[[Example], Encoded],
    admit: Callable[[Example, Encoded], bool],
    bad_rows: BadRows,
    report: Callable[[str], None] | None = None,
) -> Selected[Encoded]:
    """The rows that `encode` can read and `admit` lets pass.

    With `report`, more than `MANY` rows are encoded on demand, and rows left out then are reported: the next usable row
    takes the place of one, so the rows of a step depend only on the data. Some rows, spread evenly, are still checked
    at the start. Raises InputError for a checked row that cannot be used, unless those are skipped, and if none can.
    Drawing raises RunError for such a row.
    """
    many = report is not None and len(examples) > MANY
    looked_at = examples[:: len(examples) // _LOOKED_AT] if many else examples
    encoded, refused = encode_rows(looked_at, encode, bad_rows)
    kept = [pair for pair in encoded if admit(*pair)]
    if report is None or not many or not kept:
        fitting, ids = (tuple(column) for column in zip(*kept, strict=True)) if kept else ((), ())
        return Selected(fitting, ids, len(encoded), len(encoded) - len(kept), refused)
    left_out = len(looked_at) - len(kept)
    said = f", {left_out} of which cannot be used" if left_out else ""
    report(f"data: {len(looked_at)} of {counted(len(examples), 'row')} checked{said}; each is encoded on demand")
    drawn = _Drawn(examples, encode, admit, bad_rows, report)
    return Selected(
        _Column(len(examples), lambda row: drawn.at(row)[0], kinds_of(examples)),
        _Column(len(examples), lambda row: drawn.at(row)[1]),
        len(encoded),
    )


class _Drawn(Generic[Encoded]):
    """Encodes rows on demand."""

    def __init__(
        self,
        examples: Sequence[Example],
        encode: Callable[[Example], Encoded],
        admit: Callable[[Example, Encoded], bool],
        bad_rows: BadRows,
        report: Callable[[str], None],
    ) -> None:
        self._examples, self._encode, self._admit = examples, encode, admit
        self._bad_rows, self._report = bad_rows, report
        self._left_out: set[int] = set()
        self.at = lru_cache(_KEPT)(self._at)

    def _at(self, place: int) -> tuple[Example, Encoded]:
        """The first usable row from `place` on, cyclically."""
        for row in range(place, place + _PASSED_OVER):
            index = row % len(self._examples)
            example = self._examples[index]
            try:
                encoded = self._encode(example)
                if self._admit(example, encoded):
                    return example, encoded
                self._leave_out(index, f"{example.origin} is too long")
            except BadRowError as error:
                if self._bad_rows is BadRows.error:
                    raise RunError(f"{error}; correct it, or resume with data.bad_rows=skip") from error
                self._leave_out(index, str(error).removeprefix("data: "))
            except InputError as error:
                raise RunError(str(error)) from error
        raise RunError(f"data: none of the {_PASSED_OVER} rows from {self._examples[place].origin} on can be used")

    def _leave_out(self, index: int, why: str) -> None:
        self._left_out.add(index)
        count = len(self._left_out)
        if str(count).strip("0") == "1":  # the 1st, the 10th, the 100th
            self._report(f"data: {count} drawn so far cannot be used, the next took their places; the latest: {why}")


class _Column(Sequence[Item]):
    """One part of all rows, built on demand."""

    def __init__(self, length: int, at: Callable[[int], Item], kinds: Sequence[int] | None = None) -> None:
        self._length, self._at, self.kinds = length, at, kinds

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        if isinstance(place, slice):
            return [self._at(row) for row in range(self._length)[place]]
        return self._at(range(self._length)[place])
