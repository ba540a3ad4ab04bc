"""The interface between an algorithm and the training loop, and the registry of algorithms."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from alignrun.config import Config, TrainOn
from alignrun.data.dataset import Dataset
from alignrun.data.encoding import Encoding
from alignrun.data.prompts import PromptSet
from alignrun.discovery import import_all
from alignrun.errors import InputError
from alignrun.generation.streams import Stream
from alignrun.models.backbone import Backbone
from alignrun.models.policy import Policy
from alignrun.models.scorer import Scorer
from alignrun.preferences.base import Preference
from alignrun.types import Example, Role


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one micro-batch, as sums with their counts.

    The mean over a step is Σ_micro-batches sum / Σ_micro-batches count. Means of micro-batches could not be averaged:
    those of different sizes would get equal weight. With sums, any split of a batch gives the gradient of the whole.
    """

    total: Tensor
    """Sum of the loss over the targets, a scalar with a gradient."""
    targets: int | Tensor
    """The divisor of the sum, applied once over the whole step: sequences or tokens, depending on the objective."""
    metrics: dict[str, Tensor]
    """Sums over the targets: scalars without a gradient."""
    tokens: Tensor
    """Completion tokens in the micro-batch, to measure throughput."""
    per_sequence: Mapping[str, Tensor] = field(default_factory=dict)
    """Further metrics, summed over sequences where sequences are not the targets."""
    sequences: int = 0
    """The divisor of `per_sequence`."""
    probabilities: Tensor | None = None
    """[B] the model's P(chosen ≻ rejected) for every pair, without a gradient."""


class Trained(Protocol):
    """The model that a run trains: a policy or a feedback model."""

    backbone: Backbone
    """The base model and its adapters."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in a fixed order."""

    def save_adapter(self, folder: Path) -> None:
        """Write the trained weights."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The components of an algorithm that trains a policy."""

    policy: Policy
    preference: Preference
    config: Config


@dataclass(frozen=True, slots=True)
class FeedbackTools:
    """The components of an algorithm that trains a reward or preference model."""

    scorer: Scorer
    config: Config


class Measure(Enum):
    """An evaluation of a policy on held-out data."""

    loss = "loss"
    """The algorithm's own loss on demonstrations."""
    pairs = "pairs"
    """The loss, accuracy and calibration on preference pairs."""
    opponent = "opponent"
    """The policy against its frozen opponent."""
    policy = "policy"
    """The policy against the reference: by sampling, or exactly on a matrix game."""


HalfStep = Callable[[Any], AbstractContextManager[None]]
"""Within the context, the policy has taken an optimiser step on the given batch; on exit it is restored."""


def _not_in_a_loop(batch: Any) -> AbstractContextManager[None]:
    raise TypeError("half-steps need a training loop and an algorithm that declares `half_steps = True`")


class Algorithm(ABC):
    """One training algorithm: what it samples, how it scores the samples, and which objective it optimises.

    The training loop does the rest: micro-batches, accumulation, clipping, logging, evaluation and saving. The memory
    plan and the rollout server read the declarations `streams`, `snapshots`, `half_steps` and `value_function`.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    online: ClassVar[bool] = True
    """Whether training samples completions and asks the preference to judge them."""
    learned: ClassVar[int] = 0
    """Completions per example to learn from, for an algorithm that samples none."""
    whole_conversations: ClassVar[bool] = False
    """Whether it can learn from every turn of the assistant in a conversation."""
    judged_whole: ClassVar[bool] = False
    """Whether the preference compares conversations of several turns rather than single completions."""
    snapshots: ClassVar[Sequence[Role]] = ()
    """Roles that hold frozen snapshots of the policy, taken before the first step and saved in every checkpoint."""
    half_steps: ClassVar[bool] = False
    """Whether `collect` uses `half_step`."""
    value_function: ClassVar[bool] = False
    """Whether a value function is trained as well, on its own adapter."""
    half_step: HalfStep = staticmethod(_not_in_a_loop)
    """Set by the training loop if `half_steps` is true."""

    def __init__(self, config: Any, tools: Any) -> None:
        self.config = config
        self.tools = tools
        for role in self.kept(tools.config):
            tools.policy.snapshot(role)

    @classmethod
    @abstractmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """The samples to draw for every prompt at a step, 0 ≤ `step` < `train.steps`, in one decoding loop."""

    @classmethod
    def declared(cls, config: Config) -> Sequence[Sequence[Stream]]:
        """The streams at the first, middle and last step, since a mixture may appear or vanish during the run."""
        last = config.train.steps - 1
        return [cls.streams(config, step) for step in (0, last // 2, last)]

    @classmethod
    def later_turns(cls, config: Config) -> tuple[int, int]:
        """How often every sample is followed by another with a prompt of its own, and tokens that the last one adds."""
        return 0, 0

    @classmethod
    def kept(cls, config: Config) -> Sequence[Role]:
        """The snapshots that a configuration needs: all of `snapshots`, unless their number is a setting."""
        return cls.snapshots

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Pairs of completions of each prompt that a step judges, for a number of opponents of each; None is all."""
        return 0

    @classmethod
    def dataset(cls, config: Any, examples: Sequence[Example], encoding: Encoding) -> Dataset[Any]:
        """Encode the examples for this algorithm; by default, only their prompts.

        Raises:
            InputError: an example is too long, or lacks a field that the algorithm needs.
        """
        return PromptSet.build(examples, encoding)

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse a configuration that this algorithm cannot train, before anything is loaded. Raises InputError."""
        if cls.online and config.preference.name == "none":
            raise InputError(f"config: algo={cls.name} needs a preference to judge its samples: choose preference=NAME")
        if config.data.train_on is TrainOn.all and not cls.whole_conversations:
            raise InputError(
                f"config: data.train_on=all is for algo=sft: algo={cls.name} learns from the last turn, which its data "
                "or its preference judges"
            )
        if config.train.max_kl is not None and not cls.online:
            raise InputError(
                f"config: train.max_kl needs samples of the policy, and algo={cls.name} draws none: leave it out"
            )

    @classmethod
    def opponent(cls, config: Config) -> str | None:
        """The frozen opponent to train against, if it is not the reference: a run or an adapter folder."""
        return None

    @classmethod
    def tau(cls, config: Config) -> float:
        """τ, the configured weight of KL(π‖μ): `algo.kl_tau`, or 0 for an algorithm without that key."""
        return float(getattr(config.algo, "kl_tau", 0.0))

    @classmethod
    def precomputes(cls, config: Config) -> bool:
        """Whether `prepare` reads every row, so that all rows are encoded before the first step."""
        return False

    def evaluators(self) -> Sequence[Measure]:
        """The evaluations of the policy, in the order in which they are printed."""
        return [Measure.policy]

    def prepare(self, data: Dataset[Any]) -> Dataset[Any]:
        """Precompute per-example quantities; called once per data set, before the first step."""
        return data

    def notes(self) -> Sequence[str]:
        """Messages to show the user once, before the first step."""
        return ()

    def report(self, note: Callable[[str], None]) -> None:  # noqa: B027
        """Print what happens during the run with `note`."""

    @property
    def asked(self) -> int:
        """Questions so far to a preference that judges pair by pair; both orders of a pair are two."""
        return 0

    def kl_weight(self) -> float:
        """The current weight τ of KL(π‖μ) against the preference; 0 without a KL penalty."""
        return self.tau(self.tools.config)

    def drain(self) -> dict[str, float]:
        """Means over the questions to the preference since the last call, such as votes of a panel's members."""
        return self.tools.preference.drain() if isinstance(self.tools, Tools) else {}

    def check_update(self, metrics: Mapping[str, float]) -> None:  # noqa: B027 - most refuse nothing
        """Refuse an update by its metrics, which are the same on all processes, before it is made. Raises RunError."""

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """Parameters trained in addition to the policy, such as a value function, by name and in a fixed order."""
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """Further state for the checkpoint: live tensors by name, which resuming overwrites in place."""
        kept = (self.tools.policy.snapshot_weights(role) for role in self.kept(self.tools.config))
        return {name: weight for weights in kept for name, weight in weights.items()}

    @property
    def measured(self) -> dict[str, float]:
        """Measurements that the next steps depend on, for the checkpoint; resuming updates the dictionary in place."""
        return {}

    def exports(self) -> Mapping[str, Callable[[Path], None]]:
        """Further exports of a finished run next to `adapter/`: a writer for each folder name."""
        return {}

    @abstractmethod
    def collect(self, batch: Any, step: int) -> Iterator[Any]:
        """The batches of the optimiser steps for one batch of data, as frozen dataclasses of rows.

        The generator resumes after the optimiser step on the yielded batch, so it can sample from the updated policy.
        """

    @abstractmethod
    def loss(self, batch: Any) -> Loss:
        """The loss on one micro-batch of a batch from `collect`."""


class OfflineAlgorithm(Algorithm):
    """An algorithm that learns from the data alone, without sampling or judging during training."""

    online = False
    learned = 1

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """None: nothing is sampled."""
        return ()

    def evaluators(self) -> Sequence[Measure]:
        """The loss on held-out data, then the policy against the reference."""
        return [Measure.loss, Measure.policy]

    def kl_weight(self) -> float:
        """0: an offline algorithm fits its data and does not seek the equilibrium of the game."""
        return 0.0

    def collect(self, batch: Any, step: int) -> Iterator[Any]:
        """Yield the batch of data unchanged."""
        yield batch


_registered: dict[str, type[Algorithm]] = {}
"""Read through `discover`: an algorithm is registered when its module is imported."""


def algorithm(name: str, config_class: type) -> Callable[[type[Algorithm]], type[Algorithm]]:
    """Register an algorithm under its configuration name, with the dataclass of its configuration."""

    def register(cls: type[Algorithm]) -> type[Algorithm]:
        cls.name, cls.config_class = name, config_class
        _registered[name] = cls
        return cls

    return register


def discover() -> dict[str, type[Algorithm]]:
    """Import every module of this package, so that adding a file is enough to add an algorithm."""
    import_all("alignrun.algorithms")
    return _registered


def opponent_of(config: Config) -> str | None:
    """The frozen opponent of the run, if it is not the reference."""
    return discover()[config.algo.name].opponent(config)
