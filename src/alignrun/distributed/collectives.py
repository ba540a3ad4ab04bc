"""Collectives: what the processes gather, sum and broadcast."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from alignrun.distributed import group

Number = TypeVar("Number", int, float)


def gather(part: Tensor, count: int) -> Tensor:
    """[count, …] the rows of all processes in order, from each one's `share`; the other dimensions must be equal."""
    if group.size() == 1:
        return part
    sent = part.to(_device()).contiguous()
    if part.dtype is torch.bool:  # gloo cannot send bool
        sent = sent.to(torch.uint8)
    parts = [torch.empty_like(sent) for _ in range(group.size())]
    with group.report_lost():
        dist.all_gather(parts, sent)
    return torch.cat(parts)[:count].to(part)


def gather_objects(value: Any) -> list[Any]:
    """One object of each process, in the order of their ranks."""
    values: list[Any] = [None] * group.size()
    with group.report_lost():
        dist.all_gather_object(values, value)
    return values


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over the processes, bitwise equal on all of them."""
    if group.size() == 1:
        return tensor
    sent = tensor.to(_device(), copy=True)
    _reduce(sent)
    return sent.to(tensor)


def all_reduce_sum_each(tensors: Sequence[Tensor]) -> None:
    """Sum many tensors over the processes, in place and in one message per dtype."""
    if group.size() == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):  # the same order on every process
        same = [tensor for tensor in tensors if tensor.dtype is dtype]
        total = torch.cat([tensor.flatten() for tensor in same])
        _reduce(total)
        for tensor, part in zip(same, total.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


def largest(value: Number) -> Number:
    """Maximum of a number over the processes."""
    return max(gather_objects(value)) if group.size() > 1 else value


def all_done(done: bool) -> bool:
    """Whether this process is done and, with a sharded base, all the others are too."""
    return all(gather_objects(done)) if group.sharded() else done


def broadcast(value: Any) -> Any:
    """Broadcast the main process's value to every rank."""
    if group.size() == 1:
        return value
    values = [value]
    with group.report_lost():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def all_equal(value: Any) -> bool:
    """Whether all processes have the same value."""
    return group.size() == 1 or len(set(gather_objects(value))) == 1


def _reduce(tensor: Tensor) -> None:
    with group.report_lost():
        dist.all_reduce(tensor)


def _device() -> torch.device:
    """The device that the backend sends from."""
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device
