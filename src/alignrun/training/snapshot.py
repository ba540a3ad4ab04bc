"""Save and restore weights and optimiser state around a half-step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim import Optimizer

from alignrun.training.optim import flatten_optimizer, restore_optimizer


@contextmanager
def undone(weights: Mapping[str, nn.Parameter], optimizer: Optimizer) -> Iterator[None]:
    """Restore weights and optimiser state, bit for bit, at the end of the context."""
    names = list(weights)
    tensors, settings = flatten_optimizer(optimizer, names)
    moments = {name: value.clone() for name, value in tensors.items()}
    before = [weight.detach().clone() for weight in weights.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights.values(), before, strict=True):
                weight.copy_(value)
        restore_optimizer(optimizer, names, moments, settings)
