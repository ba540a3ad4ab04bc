"""A rollout that several optimiser steps learn from, as PPO and GRPO do."""

from collections.abc import Iterator
from typing import Any

import torch

from alignrun.algorithms.common.batches import count, select
from alignrun.algorithms.common.rollout import step_seed


def minibatches(rollout: Any, epochs: int, parts: int, seed: int, step: int) -> Iterator[Any]:
    """Every prompt of the rollout once in each epoch, in a new order, in `parts` minibatches as alike in size as can
    be: one step for each."""
    generator = torch.Generator().manual_seed(step_seed(seed, step, 97))
    for _ in range(epochs):
        for index in torch.randperm(count(rollout), generator=generator).tensor_split(parts):
            yield select(rollout, index)
