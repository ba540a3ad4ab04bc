"""Which rows of a batch each process computes."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from torch import Tensor

from alignrun.distributed import group
from alignrun.distributed.collectives import gather
from alignrun.distributed.errors import raise_together

Item = TypeVar("Item")


def share(count: int) -> list[int]:
    """Indices of the rows this process computes, equally many on each; the last row is repeated where needed."""
    each = -(-count // group.size())
    return [min(row, count - 1) for row in range(group.rank() * each, (group.rank() + 1) * each)]


def owned_rows(count: int) -> int:
    """How many rows of `share`, counted from its first, are not repetitions: only these enter a sum."""
    each = -(-count // group.size())
    return max(0, min(each, count - group.rank() * each))


def by_share(count: int, compute: Callable[[list[int]], Tensor]) -> Tensor:
    """[count, …] from `compute`, called on each process with its share of the rows; a failure on one fails on all.

    The results must have the same shape on every process, except for the rows.
    """
    if group.size() == 1:
        return compute(list(range(count)))
    with raise_together():
        part = compute(share(count))
    return gather(part, count)


def round_robin(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Deal one item of each `size()` to every process, with a flag whether it counts.

    All processes take the same number of steps: an incomplete last round repeats its last item, which counts once.
    """
    rest = iter(items)
    while dealt := list(islice(rest, group.size())):
        yield dealt[min(group.rank(), len(dealt) - 1)], group.rank() < len(dealt)
