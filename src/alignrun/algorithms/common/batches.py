"""Operations on batches: frozen dataclasses of tensors, tuples and nested batches, whose first dimension is rows.

A field of any other type, such as a flag, applies to all rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.models.fitting import Pieces
from alignrun.types import map_parts

Batch = TypeVar("Batch")


def count(batch: Any) -> int:
    """The number of rows of a batch."""
    while is_dataclass(batch):
        batch = getattr(batch, fields(batch)[0].name)
    return len(batch)


def rows(batch: Batch, span: slice) -> Batch:
    """The rows of a slice."""
    return _map_rows(batch, lambda part: part[span])


def select(batch: Batch, index: Tensor) -> Batch:
    """The rows at the given indices, in that order."""
    places = index.tolist()
    return _map_rows(
        batch, lambda part: part[index] if isinstance(part, Tensor) else tuple(part[place] for place in places)
    )


def pieces(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Split the rows in order into pieces of at most `size`; None means one piece."""
    each = size or count(batch)
    for start in range(0, count(batch), each):
        yield rows(batch, slice(start, start + each))


def in_pieces(batch: Any, compute: Callable[[Any], Tensor], memory: Pieces) -> Tensor:
    """[B, …] the result of `compute` for each row of a batch, of as many rows per call as fit the memory.

    The results must agree in all other dimensions.
    """
    return memory.that_fit(count(batch), lambda size: torch.cat([compute(piece) for piece in pieces(batch, size)]))


def shared(batch: Any, compute: Callable[[Any], Tensor], memory: Pieces) -> Tensor:
    """The same, with the rows sharded over processes."""
    if distributed.size() == 1:
        return in_pieces(batch, compute, memory)
    return distributed.by_share(
        count(batch), lambda index: in_pieces(select(batch, torch.tensor(index)), compute, memory)
    )


def as_json(batch: Any) -> Any:
    """Convert a batch to JSON-compatible values."""
    if isinstance(batch, Tensor):
        return batch.tolist()
    if is_dataclass(batch):
        return {field.name: as_json(getattr(batch, field.name)) for field in fields(batch)}
    return batch


def _map_rows(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    return map_parts(batch, lambda part: part if part is None or isinstance(part, bool) else function(part))
