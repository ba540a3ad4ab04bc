"""What an algorithm gives to the training loop, and how it is found by name."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignrun.algorithms.common.workload import Workload
from alignrun.config import Config, DataConfig, Engine
from alignrun.data import PromptSet, padding_id
from alignrun.errors import InputError
from alignrun.models.backbone import Backbone
from alignrun.models.policy import Policy
from alignrun.models.scorer import Scorer
from alignrun.preferences.base import Preference
from alignrun.types import Example


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


class Dataset(Protocol):
    """Examples, encoded once, from which the batch of any step can be had without any state."""

    @property
    def skipped(self) -> int:
        """Examples left out because they were too long."""

    @property
    def refused(self) -> int:
        """Examples left out because the chat template or the tokenizer refuses them."""

    def __len__(self) -> int: ...

    def batch_at(self, step: int, size: int, shift: int = 0) -> Any:
        """The batch of a step: a pure function of the seed and its arguments, as `data.order.rows_at`."""

    def all_batches(self, size: int) -> Iterator[Any]:
        """Every example once."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """What it takes to turn examples into token ids."""

    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    system_prompt: str | None
    context: int
    """The most tokens that the model reads at once."""
    max_new_tokens: int
    """What sampling needs of them."""
    seed: int
    append_end_of_turn: bool = True
    """Whether completions end with the end of the turn; the actions of a game are single tokens and do not."""
    rows: int | None = None
    """How many tokens the model has embeddings for, where its configuration says so."""
    drawn: Callable[[str], None] | None = None
    """Where many rows may be encoded when they are drawn: what reports those that are left out then."""

    @property
    def pad_id(self) -> int:
        """The token to pad with."""
        return padding_id(self.tokenizer)


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


class Algorithm(ABC):
    """One training algorithm: what it learns from, how that is scored, and which objective it goes into.

    The loop does the rest: micro-batches, accumulation, clipping, logging, evaluation, saving.
    """

    name: ClassVar[str]
    config_class: ClassVar[type]
    online: ClassVar[bool] = True
    """Whether completions are sampled and judged by the preference while training."""
    policy_alone: bool = False
    """Whether all samples of a step come from the policy as it is, so that a rollout server can draw them."""

    def __init__(self, config: Any, tools: Any) -> None:
        self.config = config
        self.tools = tools

    @classmethod
    def dataset(cls, config: Any, examples: Sequence[Example], encoding: Encoding) -> Dataset:
        """The examples as this algorithm reads them: by default their prompts alone.

        Raises:
            InputError: an example does not fit, or lacks what the algorithm learns from.
        """
        return prompt_set(examples, encoding)

    @classmethod
    def workload(cls, config: Any) -> Workload:
        """What a step asks of the model for every prompt: by default `samples_per_prompt` samples of the policy, all
        learned from; without that key, one of the policy, which is learned from, and one of the reference."""
        samples = getattr(config, "samples_per_prompt", None)
        if samples is None:
            return Workload.against(1, 1.0)
        return Workload(learned=samples, drawn=(0.0,) * samples)

    def prepare(self, data: Dataset) -> Dataset:
        """Called once for each of the data sets, before the first step, for what is worth computing ahead."""
        return data

    def notes(self) -> Sequence[str]:
        """What a user should know once, before the first step."""
        if self.online and not self.policy_alone and self.tools.config.generation.engine is Engine.server:
            return [
                f"generation.engine=server: algo={self.name} also samples other policies, which the native engine does"
            ]
        return ()

    def kl_weight(self) -> float:
        """τ as it weighs KL(π‖μ) against the preference by now; 0 where nothing does."""
        return float(getattr(self.config, "kl_tau", 0.0))

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """What is trained beside the policy, by name, in a fixed order: a value function."""
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """What a checkpoint must hold beside what is trained: live tensors by name, which resuming overwrites."""
        return {}

    def exports(self) -> Mapping[str, Callable[[Path], None]]:
        """What a finished run writes beside `adapter/`: how to write it, by the name of its folder."""
        return {}

    @abstractmethod
    def collect(self, batch: Any, step: int) -> Iterator[Any]:
        """Batches for the optimiser steps that follow from a batch of the data: frozen dataclasses of rows.

        A generator goes on after the step of what it has yielded, and so may sample from the policy as it is then.
        What it wraps in `Trial` is a step that is undone before the next.
        """

    @abstractmethod
    def loss(self, batch: Any) -> Loss:
        """The loss of one micro-batch of `collect`."""


class OfflineAlgorithm(Algorithm):
    """An algorithm that learns from the data alone: nothing is sampled or judged while it trains."""

    online = False

    @classmethod
    def workload(cls, config: Any) -> Workload:
        """One completion of every prompt."""
        return Workload(learned=1)

    def collect(self, batch: Any, step: int) -> Iterator[Any]:
        """The batch of the data as it is."""
        yield batch


def prompt_set(examples: Sequence[Example], encoding: Encoding) -> PromptSet:
    """The prompts of the examples, for sampling. Raises InputError as `PromptSet.build`."""
    room = encoding.context - encoding.max_new_tokens
    if room < 1:
        raise InputError(
            f"config: generation.max_new_tokens={encoding.max_new_tokens} leaves no room for a prompt in the "
            f"{encoding.context} tokens of the model: lower it"
        )
    return PromptSet.build(
        examples,
        encoding.tokenizer,
        system_prompt=encoding.system_prompt,
        max_tokens=min(room, encoding.data.max_prompt_tokens or room),
        too_long=encoding.data.too_long,
        seed=encoding.seed,
        bad_rows=encoding.data.bad_rows,
        rows=encoding.rows,
        drawn=encoding.drawn,
    )


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
