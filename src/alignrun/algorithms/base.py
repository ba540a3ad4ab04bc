"""What an algorithm gives to the training loop, and how it is found by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from alignrun.config import Config, Engine
from alignrun.data import Dataset, Encoding, PromptSet
from alignrun.discovery import import_all
from alignrun.errors import InputError
from alignrun.generation.streams import Stream, policy_alone
from alignrun.models.backbone import Backbone
from alignrun.models.policy import Policy
from alignrun.models.scorer import Scorer
from alignrun.preferences.base import Preference
from alignrun.types import Example, Role


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one micro-batch, as sums, so that accumulation equals one large batch exactly."""

    total: Tensor
    """Sum of the loss over the targets, a scalar with a gradient."""
    targets: int | Tensor
    """What the sum is divided by, once, over the whole step: sequences or tokens, as the objective says."""
    metrics: dict[str, Tensor]
    """Sums over the targets, scalars without a gradient."""
    tokens: Tensor
    """Completion tokens in the micro-batch, for the throughput."""
    per_sequence: Mapping[str, Tensor] = field(default_factory=dict)
    """Further metrics as sums over the sequences, where these are not the targets."""
    sequences: int = 0
    """What those are divided by."""
    probabilities: Tensor | None = None
    """[B] P(chosen ≻ rejected) as the model has it, of every pair, without a gradient."""


class Trained(Protocol):
    """What a run trains: a policy, or a feedback model."""

    backbone: Backbone
    """The base, and the adapters on it."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in a fixed order."""

    def save_adapter(self, folder: Path) -> None:
        """Write what was trained."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What algorithms that train a policy are assembled from."""

    policy: Policy
    preference: Preference
    config: Config


@dataclass(frozen=True, slots=True)
class FeedbackTools:
    """What algorithms that train a reward or preference model are assembled from."""

    scorer: Scorer
    config: Config


class Measure(Enum):
    """What an evaluation measures of a policy on held-out data."""

    loss = "loss"
    """The algorithm's own loss on demonstrations."""
    pairs = "pairs"
    """Its loss, accuracy and calibration on preference pairs."""
    opponent = "opponent"
    """The policy against the frozen one that it trains against."""
    policy = "policy"
    """The policy against the reference: sampled, or exact on a matrix game."""


HalfStep = Callable[[Any], AbstractContextManager[None]]
"""Within the context the policy is where an optimiser step on the given batch leads; afterwards it is back."""


def _not_in_a_loop(batch: Any) -> AbstractContextManager[None]:
    raise TypeError("half-steps are taken in a training loop, by an algorithm that declares `half_steps = True`")


class Algorithm(ABC):
    """One training algorithm: what it samples, how that is scored, and which objective it goes into.

    The loop does the rest: micro-batches, accumulation, clipping, logging, evaluation, saving. The memory plan and the
    rollout server go by what is declared here: `streams`, `snapshots`, `half_steps` and `value_function`.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    online: ClassVar[bool] = True
    """Whether completions are sampled and judged by the preference while training."""
    learned: ClassVar[int] = 0
    """Completions of every example that are learned from, where none are sampled."""
    snapshots: ClassVar[Sequence[Role]] = ()
    """Roles that hold frozen copies of the policy: taken before the first step, part of every checkpoint."""
    half_steps: ClassVar[bool] = False
    """Whether `collect` uses `half_step`."""
    value_function: ClassVar[bool] = False
    """Whether a value function is trained too, on an adapter of its own."""
    half_step: HalfStep = staticmethod(_not_in_a_loop)
    """Given by the training loop where `half_steps` says so."""

    def __init__(self, config: Any, tools: Any) -> None:
        self.config = config
        self.tools = tools
        for role in self.snapshots:
            tools.policy.snapshot(role)

    @classmethod
    @abstractmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """What is sampled for every prompt of a step, 0 ≤ `step` < `train.steps`, in one decoding loop."""

    @classmethod
    def declared(cls, config: Config) -> Sequence[Sequence[Stream]]:
        """What is sampled at the first, the middle and the last step: a mixture may come or go on the way."""
        last = config.train.steps - 1
        return [cls.streams(config, step) for step in (0, last // 2, last)]

    @classmethod
    def dataset(cls, config: Any, examples: Sequence[Example], encoding: Encoding) -> Dataset[Any]:
        """The examples as this algorithm reads them: by default their prompts alone.

        Raises:
            InputError: an example does not fit, or lacks what the algorithm learns from.
        """
        return PromptSet.build(examples, encoding)

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse a run that this algorithm cannot train, before anything is loaded. Raises InputError."""
        if cls.online and config.preference.name == "none":
            raise InputError(
                f"config: algo={cls.name} needs a preference to judge what it samples: choose preference=NAME"
            )
        if config.train.max_kl is not None and not cls.online:
            raise InputError(
                f"config: train.max_kl needs samples of the policy, and algo={cls.name} draws none: leave it out"
            )

    @classmethod
    def opponent(cls, config: Config) -> str | None:
        """A frozen policy other than the reference to train against: a run or an adapter folder."""
        return None

    @classmethod
    def tau(cls, config: Config) -> float:
        """τ, the configured weight of KL(π‖μ): `algo.kl_tau`, or 0 for an algorithm without that key."""
        return float(getattr(config.algo, "kl_tau", 0.0))

    @classmethod
    def precomputes(cls, config: Config) -> bool:
        """Whether `prepare` reads every row, so that all are encoded before the first step."""
        return False

    def evaluators(self) -> Sequence[Measure]:
        """What an evaluation measures of the policy, in the order of its lines."""
        return [Measure.policy]

    def prepare(self, data: Dataset[Any]) -> Dataset[Any]:
        """Called once for each of the data sets, before the first step, for what is worth computing ahead."""
        return data

    def notes(self) -> Sequence[str]:
        """What a user should know once, before the first step."""
        config = self.tools.config
        if config.generation.engine is Engine.server and not all(map(policy_alone, self.declared(config))):
            return [
                f"generation.engine=server: algo={self.name} also samples other policies, which the native engine does"
            ]
        return ()

    def kl_weight(self) -> float:
        """τ as it weighs KL(π‖μ) against the preference at this step; 0 where nothing does."""
        return self.tau(self.tools.config)

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """What is trained next to the policy, by name, in a fixed order: a value function."""
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """What a checkpoint must hold next to what is trained: live tensors by name, which resuming overwrites."""
        kept = (self.tools.policy.snapshot_weights(role) for role in self.snapshots)
        return {name: weight for weights in kept for name, weight in weights.items()}

    def exports(self) -> Mapping[str, Callable[[Path], None]]:
        """What a finished run writes next to `adapter/`: how to write it, by the name of its folder."""
        return {}

    @abstractmethod
    def collect(self, batch: Any, step: int) -> Iterator[Any]:
        """Batches for the optimiser steps that follow from a batch of the data: frozen dataclasses of rows.

        The generator continues after the step on what it has yielded, and so may sample from the policy as it is then.
        """

    @abstractmethod
    def loss(self, batch: Any) -> Loss:
        """The loss of one micro-batch of `collect`."""


class OfflineAlgorithm(Algorithm):
    """An algorithm that learns from the data alone: nothing is sampled or judged while it trains."""

    online = False
    learned = 1

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """Nothing."""
        return ()

    def evaluators(self) -> Sequence[Measure]:
        """The loss on held-out data, then the policy."""
        return [Measure.loss, Measure.policy]

    def kl_weight(self) -> float:
        """0: an offline algorithm answers its data, and not the equilibrium of the game."""
        return 0.0

    def collect(self, batch: Any, step: int) -> Iterator[Any]:
        """The batch of the data as it is."""
        yield batch


_registered: dict[str, type[Algorithm]] = {}
"""Read through `discover`: an algorithm is entered when the rest of its module runs."""


def algorithm(name: str, config_class: type) -> Callable[[type[Algorithm]], type[Algorithm]]:
    """Register a class under the name that its YAML gives, with the dataclass that types the YAML."""

    def register(cls: type[Algorithm]) -> type[Algorithm]:
        cls.name, cls.config_class = name, config_class
        _registered[name] = cls
        return cls

    return register


def discover() -> dict[str, type[Algorithm]]:
    """Import every module of this package, so that a new file is an algorithm without further wiring."""
    import_all("algo")
    return _registered


def opponent_of(config: Config) -> str | None:
    """The frozen policy that the run trains against, where there is one next to the reference."""
    return discover()[config.algo.name].opponent(config)
