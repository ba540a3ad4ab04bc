"""What an algorithm gives to the training loop, and how it is found by name."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from alignrun.config import Config
from alignrun.models.policy import Policy
from alignrun.preferences.base import Preference
from alignrun.types import PromptBatch

Batch = TypeVar("Batch")


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one micro-batch, as sums, so that accumulation equals one large batch exactly."""

    total: Tensor
    """Sum of the loss over the targets, a scalar with a gradient."""
    targets: int
    """What the sum is divided by, once, over the whole step: sequences or tokens, as the objective says."""
    metrics: dict[str, Tensor]
    """Sums over the targets, scalars without a gradient."""
    tokens: Tensor
    """Completion tokens in the micro-batch, for the throughput."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What algorithms are assembled from."""

    policy: Policy
    preference: Preference
    config: Config


class Algorithm(ABC):
    """One training algorithm: what is sampled, how it is scored, and which objective it goes into.

    The loop does the rest: micro-batches, accumulation, clipping, logging, evaluation, saving.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]

    def __init__(self, config: Any, tools: Tools) -> None:
        self.config = config
        self.tools = tools

    @abstractmethod
    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Any]:
        """Batches for the optimiser steps that follow from these prompts: frozen dataclasses of rows."""

    @abstractmethod
    def loss(self, batch: Any) -> Loss:
        """The loss of one micro-batch of `collect`."""


ALGORITHMS: dict[str, type[Algorithm]] = {}


def algorithm(name: str, config_class: type) -> Callable[[type[Algorithm]], type[Algorithm]]:
    """Register a class under the name that its YAML gives, with the dataclass that types the YAML."""

    def register(cls: type[Algorithm]) -> type[Algorithm]:
        cls.name, cls.config_class = name, config_class
        ALGORITHMS[name] = cls
        return cls

    return register


def discover() -> dict[str, type[Algorithm]]:
    """Import every module of this package, so that a new file is an algorithm without further wiring."""
    package = importlib.import_module("alignrun.algorithms")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"alignrun.algorithms.{module.name}")
    return ALGORITHMS


def count(batch: Any) -> int:
    """The number of rows of such a batch."""
    while is_dataclass(batch):
        batch = getattr(batch, fields(batch)[0].name)
    return len(batch)


def rows(batch: Batch, span: slice) -> Batch:
    """The given rows of a frozen dataclass of tensors, tuples and such dataclasses, along their first dimension."""
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: rows(getattr(batch, field.name), span) for field in fields(batch)})
    return batch[span]  # type: ignore[index, no-any-return]
