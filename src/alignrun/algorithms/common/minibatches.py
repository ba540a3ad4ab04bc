"""Minibatches of a frozen rollout, for several optimiser steps on it as in PPO and GRPO."""

from collections.abc import Iterator
from typing import Any

import torch

from alignrun.algorithms.common.batches import count, select
from alignrun.algorithms.common.rollout import step_seed


def minibatches(rollout: Any, epochs: int, parts: int, seed: int, step: int) -> Iterator[Any]:
    """Shuffle the prompts of the rollout in each epoch and split them into `parts` minibatches of nearly equal size.

    Each minibatch is one optimiser step.
    """
    generator = torch.Generator().manual_seed(step_seed(seed, step, 97))
    for _ in range(epochs):
        for index in torch.randperm(count(rollout), generator=generator).tensor_split(parts):
            yield select(rollout, index)
