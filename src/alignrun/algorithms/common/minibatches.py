"""Minibatches of a frozen rollout, for several optimiser steps on it as in PPO and GRPO."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch

from alignrun.algorithms.common.batches import count, select
from alignrun.algorithms.common.online import OnlineAlgorithm
from alignrun.algorithms.common.rollout import step_seed
from alignrun.config import Config
from alignrun.errors import InputError
from alignrun.types import PromptBatch


class MinibatchAlgorithm(OnlineAlgorithm):
    """Takes several optimiser steps on each rollout: `epochs` passes over its `minibatches`."""

    config: Any

    @classmethod
    def check(cls, config: Config) -> None:
        """Require enough prompts per step for the minibatches."""
        super().check(config)
        if config.algo.minibatches > config.train.batch_size:
            raise InputError(
                f"config: algo.minibatches={config.algo.minibatches} is more than train.batch_size="
                f"{config.train.batch_size}, the prompts of which they are made"
            )

    @abstractmethod
    def _frozen(self, prompts: PromptBatch, step: int) -> Any:
        """A rollout with what is needed of the policy that drew it, without gradients."""

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Any]:
        """Minibatches of one rollout, for several epochs."""
        yield from self._minibatches(self._frozen(prompts, step), step)

    def _minibatches(self, rollout: Any, step: int) -> Iterator[Any]:
        return minibatches(rollout, self.config.epochs, self.config.minibatches, self.tools.config.seed, step)


def minibatches(rollout: Any, epochs: int, parts: int, seed: int, step: int) -> Iterator[Any]:
    """Shuffle the prompts of the rollout in each epoch and split them into `parts` minibatches of nearly equal size.

    Each minibatch is one optimiser step.
    """
    generator = torch.Generator().manual_seed(step_seed(seed, step, 97))
    for _ in range(epochs):
        for index in torch.randperm(count(rollout), generator=generator).tensor_split(parts):
            yield select(rollout, index)
