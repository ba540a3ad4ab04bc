"""Batches are frozen dataclasses of rows: tensors, tuples and further such dataclasses, along their first dimension.

What is neither, a flag, is said of all rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.types import map_parts

Batch = TypeVar("Batch")


def count(batch: Any) -> int:
    """The number of rows of such a batch."""
    while is_dataclass(batch):
        batch = getattr(batch, fields(batch)[0].name)
    return len(batch)


def rows(batch: Batch, span: slice) -> Batch:
    """The rows of a span."""
    return _map_rows(batch, lambda part: part[span])


def select(batch: Batch, index: Tensor) -> Batch:
    """The rows that an index tensor names, in its order."""
    places = index.tolist()
    return _map_rows(
        batch, lambda part: part[index] if isinstance(part, Tensor) else tuple(part[place] for place in places)
    )


def pieces(batch: Batch, size: int | None) -> Iterator[Batch]:
    """The rows in order, at most `size` at a time; None is all of them."""
    each = size or count(batch)
    for start in range(0, count(batch), each):
        yield rows(batch, slice(start, start + each))


def shared(batch: Any, compute: Callable[[Any], Tensor], size: int | None = None) -> Tensor:
    """[B, …] what `compute` gives for each row of a batch, every process computing it for its share of the rows.

    At most `size` rows at a time are given to it, by default all; what it gives has one shape, but for the rows.
    """

    def in_pieces(batch: Any) -> Tensor:
        return torch.cat([compute(piece) for piece in pieces(batch, size)])

    if distributed.size() == 1:
        return in_pieces(batch)
    return distributed.by_share(count(batch), lambda index: in_pieces(select(batch, torch.tensor(index))))


def as_json(batch: Any) -> Any:
    """A batch as JSON can hold it."""
    if isinstance(batch, Tensor):
        return batch.tolist()
    if is_dataclass(batch):
        return {field.name: as_json(getattr(batch, field.name)) for field in fields(batch)}
    return batch


def _map_rows(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    return map_parts(batch, lambda part: part if part is None or isinstance(part, bool) else function(part))
