"""Sharded weights: each process holds a part of every one. Their values, their gradients, and the norm over all parts.

Every function leaves an ordinary tensor as it is. Those that say so need all processes to call them together.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from alignrun import distributed


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether one of the tensors is sharded."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor of which this process holds the same part as of `like`, from all of its values."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def gathered(weight: Tensor) -> Tensor:
    """All values of a weight, with its gradient: ∂/∂w = Σ of those of all processes. All processes call it together."""
    if not isinstance(weight, DTensor):
        return weight
    return weight.full_tensor(grad_placements=[Partial()] * weight.device_mesh.ndim)


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All values of a tensor, without a gradient. All processes call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def to_main(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All values of the tensors, on the main process's CPU; empty elsewhere. All processes call it together.

    One after another, so that no device holds two of them whole. A tensor with several names stays one.
    """
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in found:
            value = whole(tensor)
            found[id(tensor)] = value.cpu() if distributed.is_main() else tensor
    return {name: found[id(tensor)] for name, tensor in tensors.items()} if distributed.is_main() else {}


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """‖g‖₂ over all elements of all gradients, of all parts. All processes call it together."""
    split = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not split:
        return torch.nn.utils.get_total_norm(gradients)
    apart = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    own = torch.nn.utils.get_total_norm([local(gradient) for gradient in split]).double().square()
    copies = split[0].device_mesh.size(0)  # every part is held once in each group of processes
    squares = distributed.all_reduce_sum(own) / copies
    if apart:
        squares = squares + torch.nn.utils.get_total_norm(apart).double().square()
    return squares.sqrt().to(split[0].dtype)
