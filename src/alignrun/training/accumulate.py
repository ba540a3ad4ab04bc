"""Gradient accumulation over micro-batches: exactly the gradient of one large batch, on one process or many."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from alignrun import distributed
from alignrun.algorithms.base import Algorithm
from alignrun.algorithms.common.batches import count, rows
from alignrun.data.trimming import trim
from alignrun.distributed.parts import any_sharded, local, total_norm
from alignrun.models.device import batch_to
from alignrun.models.fitting import Pieces

SEQUENCES, TARGETS = "sequences", "targets"
"""Keys of the counts that the sums of a step are divided by."""


class Accumulator:
    """Accumulates the clipped gradient of a batch in the weights.

    Args:
        algorithm: computes the loss of a micro-batch.
        weights: the trained weights.
        device: where the weights are.
        micro_batch_size: prompts per micro-batch; None takes all of this process's prompts.
        max_grad_norm: the norm to which gradients are clipped; 0 disables clipping.
        note: prints that memory ran out and micro-batches became smaller.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        weights: list[nn.Parameter],
        device: torch.device,
        micro_batch_size: int | None,
        max_grad_norm: float,
        note: Callable[[str], None],
    ) -> None:
        self._algorithm, self._weights, self._device = algorithm, weights, device
        self._pieces = Pieces(micro_batch_size, "with micro-batches of", "train.micro_batch_size", "no gradient", note)
        self._max_grad_norm = max_grad_norm or math.inf

    def __call__(self, batch: Any) -> tuple[list[str], Tensor]:
        """Accumulate the clipped gradient of a batch in the weights, without waiting for the device.

        When memory runs out, it starts again with micro-batches of half the size and keeps that size: the gradient is
        the same. With a sharded base this is impossible, since all processes must run equally many passes.

        Returns:
            The names of the metrics, and their sums on the device (float64), followed by two more numbers: the
            gradient's norm before clipping, and the count by which sums and gradient are divided.
        """
        sums, by_sequence = self._pieces.that_fit(
            len(distributed.share(count(batch))), lambda size: self._passes(batch, size)
        )
        totals = distributed.all_reduce_sum(torch.stack(list(sums.values())))
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        # Those of sharded weights were summed in the backward pass.
        distributed.all_reduce_sum_each([gradient for gradient in gradients if not any_sharded([gradient])])
        own = [local(gradient) for gradient in gradients]
        # A single division by the global count makes this exactly the gradient of one large batch.
        torch._foreach_div_(own, totals[-1])
        norm = total_norm(gradients)
        torch._foreach_mul_(own, (self._max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        # The caller divides every metric by the targets.
        totals[:by_sequence] *= totals[-1] / totals[-2]
        names = [name for name in sums if name not in (SEQUENCES, TARGETS)]
        return names, torch.cat([totals[:-2], norm.double()[None], totals[-1:]])

    def _passes(self, batch: Any, size: int) -> tuple[dict[str, Tensor], int]:
        """Accumulate the sum of the gradients of this process's rows in the weights.

        Returns:
            Sums on the device (float64): first the metrics per sequence, then those per target, then the numbers of
            sequences and of targets. Also how many metrics are per sequence.
        """
        self._clear()
        sums: dict[str, Tensor] = {}
        targets: int | Tensor = 0
        sequences = by_sequence = 0
        for micro, counts in micro_batches(batch, size):
            # Trim before the copy: offline batches are still on the CPU.
            loss = self._algorithm.loss(batch_to(trim(micro), self._device))
            # A pass that does not count runs all the same: the others may wait for its gradients.
            (loss.total if counts else 0 * loss.total).backward()
            targets, sequences = targets + counts * loss.targets, sequences + counts * loss.sequences
            by_sequence = len(loss.per_sequence)
            measured = {**loss.per_sequence, **loss.metrics, "loss": loss.total.detach(), "tokens": loss.tokens}
            for name, value in measured.items():
                sums[name] = sums.get(name, 0) + (value.double() if counts else torch.zeros_like(value).double())
        for name, number in ((SEQUENCES, sequences), (TARGETS, targets)):
            sums[name] = torch.as_tensor(number, dtype=torch.float64, device=self._device)
        return sums, by_sequence

    def _clear(self) -> None:
        for weight in self._weights:
            weight.grad = None


def micro_batches(batch: Any, size: int) -> Iterator[tuple[Any, bool]]:
    """This process's rows of the batch, at most `size` at a time, with a flag whether they count.

    With a sharded base all processes must run equally many passes, and every process must know the metrics' names: a
    process without enough rows repeats its last one, which does not count.
    """
    share = distributed.share(count(batch))
    owned = distributed.owned_rows(count(batch))
    for start in range(0, owned, size):
        stop = min(start + size, owned)
        yield rows(batch, slice(share[start], share[stop - 1] + 1)), True
    passes, required = -(-owned // size), -(-len(share) // size) if distributed.sharded() else 1
    for _ in range(passes, required):
        yield rows(batch, slice(share[-1], share[-1] + 1)), False
