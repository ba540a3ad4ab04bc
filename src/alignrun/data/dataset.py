"""Rows encoded once; the batch of any step is a pure function of the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

from alignrun.data.drawn import encodable
from alignrun.data.encoding import Encoding
from alignrun.data.order import rows_at
from alignrun.data.skips import Skips
from alignrun.errors import InputError
from alignrun.types import Example

Encoded = TypeVar("Encoded")


@dataclass(frozen=True, slots=True)
class Read:
    """A text of a row as the model reads it, to show to people."""

    name: str
    ids: tuple[int, ...]
    learned: tuple[tuple[int, int], ...] = ()
    """The ranges of tokens that are learned."""


@dataclass(frozen=True, eq=False, slots=True)
class Dataset(ABC, Generic[Encoded]):
    """Rows as text and as token ids, in the order of the data set."""

    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    pad_id: int
    seed: int
    skipped: int
    """The number of rows left out because they were too long."""
    refusals: Skips
    """The number of rows left out because the chat template or the tokenizer refuses them."""

    @classmethod
    def select(
        cls,
        examples: Sequence[Example],
        encoding: Encoding,
        encode: Callable[[Example], Encoded],
        admit: Callable[[Example, Encoded], bool],
        none_left: Callable[[int], InputError],
        **more: Any,
    ) -> Self:
        """The rows that `encode` can read and `admit` lets pass, as `data.drawn.encodable` chooses them.

        Raises what that raises, and `none_left` of the number of rows read where none is left.
        """
        used = encodable(examples, encode, admit, encoding.data.bad_rows, encoding.drawn)
        if not used.examples:
            raise none_left(used.read)
        return cls(used.examples, used.encoded, encoding.pad_id, encoding.seed, used.skipped, used.refused, **more)

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def refused(self) -> int:
        """The number of rows that the chat template or the tokenizer refuses."""
        return len(self.refusals)

    def part(self, rows: Sequence[int]) -> Self:
        """These rows as a separate data set."""
        return replace(self, examples=[self.examples[row] for row in rows], encoded=[self.encoded[row] for row in rows])

    def batch_at(self, step: int, size: int, shift: int = 0) -> Any:
        """The batch of a step, a pure function of the seed and its arguments, see `rows_at`."""
        return self.batch(self.ordered(rows_at(step, size, len(self), self.seed, shift)))

    def all_rows(self, size: int) -> Iterator[Sequence[int]]:
        """The rows of the batches of `all_batches`."""
        rows = self.ordered(range(len(self)))
        for start in range(0, len(self), size):
            yield rows[start : start + size]

    def all_batches(self, size: int) -> Iterator[Any]:
        """Every row once; the last batch may be smaller."""
        yield from map(self.batch, self.all_rows(size))

    def ordered(self, rows: Sequence[int]) -> Sequence[int]:
        """The rows in their order in a batch."""
        return rows

    @abstractmethod
    def lengths(self, row: int) -> Mapping[str, int]:
        """The number of tokens of each named part of a row."""

    @abstractmethod
    def shown(self, row: int) -> Sequence[Read]:
        """The texts of a row as the model reads them."""

    @abstractmethod
    def batch(self, rows: Sequence[int]) -> Any:
        """These rows as tensors."""
