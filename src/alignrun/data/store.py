"""Examples in a private temporary file, with an index in memory: a data set may be larger than memory."""

import hashlib
import io
import marshal
import os
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import fields
from enum import IntEnum
from itertools import accumulate, chain
from operator import attrgetter
from typing import IO, Any, overload

from alignrun.data.values import BadRowError
from alignrun.errors import RunError, one_line
from alignrun.types import Example

Record = tuple[Any, ...]
"""The fields of an example in order, without trailing defaults."""
_DEFAULTS: Record = tuple(each.default for each in fields(Example))
_VALUES = attrgetter(*(each.name for each in fields(Example)))
_FORM = 2
"""The version of Python's marshal format. Later ones write the same value in several ways."""
_HELD, _OBJECTS = 1 << 18, 128
"""Bytes kept in memory, enough for a small data set, and Python's overhead per example."""


class Kind(IntEnum):
    """What can be learned from an example; each kind can also be used as any earlier one."""

    prompt = 0
    demonstration = 1
    tie = 2
    pair = 3


def record_of(example: Example) -> Record:
    """The example as a record."""
    values: Record = _VALUES(example)
    length = len(values)
    while length > 2 and values[length - 1] == _DEFAULTS[length - 1]:
        length -= 1
    return values[:length]


def kind_of(record: Record) -> Kind:
    """The kind of a record."""
    if len(record) == 2:
        return Kind.prompt
    chosen, rejected, label = (*record[2:5], *_DEFAULTS[len(record) : 5])
    if chosen is None or rejected is None:
        return Kind.prompt if chosen is None else Kind.demonstration
    return Kind.tie if label == 0.5 else Kind.pair


def kinds_of(examples: Sequence[Example]) -> Sequence[int]:
    """The kind of each example, without reading them if it is known."""
    known: Sequence[int] | None = getattr(examples, "kinds", None)
    return [kind_of(record_of(example)) for example in examples] if known is None else known


def first_below(examples: Sequence[Example], kind: Kind) -> Example | None:
    """The first example of a kind below `kind`."""
    kinds = kinds_of(examples)
    return next((examples[place] for place, found in enumerate(kinds) if found < kind), None)


class Examples(Sequence[Example]):
    """Examples in the order in which they were added."""

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self.kinds = bytearray()
        """The `Kind` of each."""
        self._ends = array("Q", [0])
        """The end of each example in the file, for those written to it."""
        self._contents: list[bytes] = []
        """The examples that are not written yet."""
        self._origins: list[str] = []
        self._held = 0
        """Their size in bytes."""
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        for example in examples:
            self.add(record_of(example))

    def add(self, record: Record) -> None:
        """Append an example. Raises BadRowError for values that are not JSON, and RunError if the disk is full."""
        prompt, origin, *rest = record
        try:
            content = marshal.dumps((prompt, *rest), _FORM)
        except ValueError as error:
            raise BadRowError(
                f"data: {origin} holds a value that is not a text, number, list or object, or is nested too deeply"
            ) from error
        self._contents.append(content)
        self._origins.append(origin)
        self.kinds.append(kind_of(record))
        self._held += len(content) + len(origin) + _OBJECTS
        if self._held > _HELD:
            self._write()

    @property
    def digest(self) -> str:
        """A digest of the examples in order, including kept columns, independent of their origin."""
        digest = self._digest.copy()
        digest.update(b"".join(self._contents))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.kinds)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...
    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            return [self._at(row) for row in range(len(self))[place]]
        return self._at(range(len(self))[place])

    def _at(self, row: int) -> Example:
        written = len(self._ends) - 1
        if self._file is None or row >= written:
            prompt, *rest = marshal.loads(self._contents[row - written])
            return Example(prompt, self._origins[row - written], *rest)
        start, end = self._ends[row], self._ends[row + 1]
        stream = io.BytesIO(os.pread(self._file.fileno(), end - start, start))
        prompt, *rest = marshal.load(stream)
        return Example(prompt, stream.read().decode("utf-8", "surrogatepass"), *rest)

    def _write(self) -> None:
        origins = [origin.encode("utf-8", "surrogatepass") for origin in self._origins]
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the examples
            self._file.write(b"".join(chain.from_iterable(zip(self._contents, origins, strict=True))))
            self._file.flush()
        except OSError as error:
            raise RunError(
                f"data: {tempfile.gettempdir()} cannot hold a copy of the rows ({one_line(error)}); set TMPDIR to a "
                "folder with more space"
            ) from error
        sizes = map(int.__add__, map(len, self._contents), map(len, origins))
        self._ends.extend(accumulate(sizes, initial=self._ends.pop()))
        self._digest.update(b"".join(self._contents))
        self._contents, self._origins, self._held = [], [], 0
