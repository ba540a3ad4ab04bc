"""The optimiser and its learning-rate schedule."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from alignrun.config import OptimConfig, Schedule


def make_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay (arXiv 1711.05101)."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step 0 ≤ `step` < `steps`: linear warm-up, then constant or a decay towards zero.

    A function of the step alone, so that a resumed run continues the same schedule.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    factor = {
        Schedule.constant: 1.0,
        Schedule.linear: 1.0 - done,
        Schedule.cosine: 0.5 * (1.0 + math.cos(math.pi * done)),
    }[config.schedule]
    return config.learning_rate * factor
