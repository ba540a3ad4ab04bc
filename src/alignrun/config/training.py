"""Sampling, optimising, evaluating and recording."""

import math
from dataclasses import field
from enum import Enum
from fractions import Fraction
from typing import Any

from alignrun.config.schema import AUTO, require, require_count, schema
from alignrun.config.urls import is_base


class Engine(str, Enum):
    """The engine that samples the policy."""

    native = "native"
    """This process."""
    server = "server"
    """A vLLM or SGLang server with the same base, which loads the adapters."""


class Opponents(str, Enum):
    """Where the completions of an opponent near the policy come from, in the native engine."""

    auto = "auto"
    """`drafted` while that is faster, by the share of the drafts that was kept last; otherwise `independent`."""
    drafted = "drafted"
    """The policy's own samples, verified and continued; a sample does not meet the opponent that it drafted."""
    independent = "independent"
    """Draws of their own."""


class ServerKind(str, Enum):
    """The protocol of the rollout server."""

    auto = "auto"
    """SGLang where the server's list of models names it, otherwise vLLM."""
    vllm = "vllm"
    """vLLM 0.10.2 or newer."""
    sglang = "sglang"
    """SGLang 0.5 or newer."""


@schema
class GenerationConfig:
    """How completions are sampled."""

    max_new_tokens: int = 64
    """Longest completion, in tokens."""
    temperature: float = 1.0
    """Divides the logits of policy and reference, in sampling and in every log-probability."""
    batch_size: Any = AUTO
    """Prompts decoded together, null for the whole batch; auto: on a GPU the most that fit it, else the whole batch."""
    opponents: Opponents = Opponents.auto
    engine: Engine = Engine.native
    server_url: str | None = None
    """The server, such as http://localhost:8000; set its API key, if any, in $ALIGNRUN_ROLLOUT_API_KEY."""
    server_kind: ServerKind = ServerKind.auto
    server_model: str | None = None
    """The server's name for the base; by default its only base."""
    server_timeout_seconds: float = 600.0
    """Timeout for all completions of one prompt."""
    server_retries: int = 6
    """Attempts after the first one, while the server is down, slow or busy."""
    server_parallel: int = 64
    """Concurrent prompts."""
    server_adapter_folder: str | None = None
    """Folder for adapters, readable by the server; by default a temporary folder."""
    server_weight_cap: float | None = 2.0
    """Cap of the weights π/π_server that correct policy gradients for the server's numerics; null corrects nothing."""
    server_max_kl: float | None = 0.1
    """Refuse an update if KL(π_server‖π) is above this, in nats per token; null never refuses."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "generation.max_new_tokens", f"must be at least 1, not {self.max_new_tokens}")
        require(self.temperature > 0, "generation.temperature", f"must be positive, not {self.temperature}")
        require_count(self.batch_size, "generation.batch_size")
        require(
            self.server_url is None or is_base(self.server_url),
            "generation.server_url",
            "must be http(s)://HOST[:PORT] with no query; set a password or key in $ALIGNRUN_ROLLOUT_API_KEY",
        )
        require(0 < self.server_timeout_seconds < math.inf, "generation.server_timeout_seconds", "must be positive")
        require(self.server_retries >= 0, "generation.server_retries", "must not be negative")
        require(self.server_parallel >= 1, "generation.server_parallel", "must be at least 1")
        require(
            self.server_weight_cap is None or self.server_weight_cap >= 1,
            "generation.server_weight_cap",
            f"must be at least 1, not {self.server_weight_cap}: a lower cap scales down every gradient",
        )
        require(self.server_max_kl is None or self.server_max_kl > 0, "generation.server_max_kl", "must be positive")
        if self.engine is Engine.server:
            require(
                self.server_url is not None,
                "generation.server_url",
                "is missing: name the server, such as http://localhost:8000, or use generation.engine=native",
            )
            # vLLM silently raises a lower temperature to this one.
            require(
                self.temperature >= 0.01,
                "generation.temperature",
                f"must be at least 0.01 with generation.engine=server, not {self.temperature}",
            )

    @property
    def chunk(self) -> int | None:
        """Prompts decoded together; None for the whole batch, also while `auto` is open."""
        return None if isinstance(self.batch_size, str) else self.batch_size


class Schedule(str, Enum):
    """The learning rate after warm-up."""

    constant = "constant"
    """Constant."""
    linear = "linear"
    """Linear decay to 0."""
    cosine = "cosine"
    """Cosine decay to 0."""


@schema
class OptimConfig:
    """AdamW (arXiv 1711.05101) and its schedule."""

    learning_rate: float = 1e-4
    """The peak learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    beta1: float = 0.9
    """β₁, the decay of the first moment."""
    beta2: float = 0.999
    """β₂, the decay of the second moment."""
    epsilon: float = 1e-8
    """Adam's ε, added to the denominator."""
    schedule: Schedule = Schedule.linear
    warmup_steps: int = 0
    """Optimiser steps of linear warm-up from 0."""
    max_grad_norm: float = 1.0
    """Clip the gradient norm to this; 0 disables clipping."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "optim.learning_rate", f"must be positive, not {self.learning_rate}")
        require(self.weight_decay >= 0, "optim.weight_decay", f"must not be negative, not {self.weight_decay}")
        require(0 <= self.beta1 < 1, "optim.beta1", f"must lie in [0, 1), not {self.beta1}")
        require(0 <= self.beta2 < 1, "optim.beta2", f"must lie in [0, 1), not {self.beta2}")
        require(self.warmup_steps >= 0, "optim.warmup_steps", f"must not be negative, not {self.warmup_steps}")
        require(self.max_grad_norm >= 0, "optim.max_grad_norm", f"must not be negative, not {self.max_grad_norm}")


@schema
class TrainConfig:
    """The length of the run, its batches, logging and checkpoints."""

    steps: int = 100
    """Training steps; for PPO and GRPO, one is epochs × minibatches updates on one batch of prompts.

    With `train.epochs` it follows from the data, and is 0 until that is read.
    """
    epochs: float | None = None
    """Passes over the training rows, in place of a number of steps."""
    batch_size: int = 16
    """Prompts per step."""
    micro_batch_size: Any = AUTO
    """Prompts per backward or scoring pass, null for the whole batch; auto: on a GPU the most that fit it.

    Accumulation is exact: the gradient is that of the whole batch.
    """
    log_every: int = 1
    """Steps between log records."""
    checkpoint_every: int = 50
    """Steps between checkpoints; 0 saves only at the end and on interruption."""
    keep_checkpoints: int = 2
    """The number of newest checkpoints to keep."""
    max_skipped_steps: int = 3
    """Steps that may be skipped because of a non-finite loss or gradient; one more stops the run."""
    max_kl: float | None = None
    """Stop with a checkpoint when the estimated KL(π‖μ) of a step exceeds this, in nats."""

    def __post_init__(self) -> None:
        require(self.epochs is None or 0 < self.epochs < 1e6, "train.epochs", f"must be positive, not {self.epochs}")
        least = 1 if self.epochs is None else 0
        require(self.steps >= least, "train.steps", f"must be at least {least}, not {self.steps}")
        for name in ("batch_size", "log_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"train.{name}", f"must be at least 1, not {getattr(self, name)}")
        require(self.steps < 10**9, "train.steps", f"must be less than a billion, not {self.steps}")
        require(self.max_kl is None or self.max_kl > 0, "train.max_kl", f"must be positive, not {self.max_kl}")
        for name in ("checkpoint_every", "max_skipped_steps"):
            require(getattr(self, name) >= 0, f"train.{name}", "must not be negative")
        require_count(self.micro_batch_size, "train.micro_batch_size")

    @property
    def micro(self) -> int | None:
        """Prompts per pass; None for the whole batch, also while `auto` is open."""
        return None if isinstance(self.micro_batch_size, str) else self.micro_batch_size

    def steps_over(self, rows: int, step: int = 0, examples: int = 0) -> int:
        """The fewest steps that take `epochs` times `rows` examples: ⌈(epochs · rows − examples) / batch_size⌉ more.

        Args:
            rows: of the data set.
            step: those that are made already, perhaps with another batch size.
            examples: what they have taken.
        """
        if self.epochs is None:
            return self.steps
        wanted = Fraction(str(self.epochs)) * rows  # exactly what was typed: 0.1 epochs of 30 rows are 3
        return max(1, step + math.ceil((wanted - examples) / self.batch_size))


@schema
class EvaluationConfig:
    """The policy against the reference on held-out prompts."""

    every: int = 0
    """Steps between evaluations; 0 evaluates only at the end."""
    samples_per_prompt: int = 1
    """Completions per prompt and side."""
    batch_size: int = 32
    """Prompts decoded together."""
    confidence: float = 0.95
    """Confidence level of the intervals."""
    temperature: float = 1.0
    """Temperature at which both sides are sampled."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Sample among the most likely tokens with this total probability."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "evaluation.every", f"must not be negative, not {self.every}")
        require(self.samples_per_prompt >= 1, "evaluation.samples_per_prompt", "must be at least 1")
        require(self.batch_size >= 1, "evaluation.batch_size", f"must be at least 1, not {self.batch_size}")
        require(0 < self.confidence < 1, "evaluation.confidence", f"must lie in (0, 1), not {self.confidence}")
        require(self.temperature > 0, "evaluation.temperature", f"must be positive, not {self.temperature}")
        require(self.top_k >= 0, "evaluation.top_k", f"must not be negative, not {self.top_k}")
        require(0 < self.top_p <= 1, "evaluation.top_p", f"must lie in (0, 1], not {self.top_p}")


class WandbMode(str, Enum):
    """Where wandb records go."""

    auto = "auto"
    """Online with a key and a network, else offline."""
    online = "online"
    """On the server."""
    offline = "offline"
    """In the run's folder, for `wandb sync`."""
    disabled = "disabled"
    """Nowhere."""


class Artifact(str, Enum):
    """Which adapter to log to wandb as an artifact; with adapter=none, the whole model."""

    never = "never"
    """None."""
    end = "end"
    """The adapter of the last step."""
    best = "best"
    """The adapter at every evaluation that beats all earlier ones."""


@schema
class TrackerConfig:
    """wandb, in addition to metrics.jsonl and samples.jsonl, which are always written."""

    mode: WandbMode = WandbMode.auto
    project: str | None = None
    """Default: $WANDB_PROJECT, or else alignrun."""
    entity: str | None = None
    """Default: $WANDB_ENTITY, or else that of the account."""
    name: str | None = None
    """Default: $WANDB_NAME, or else the run's sweep overrides, or the run's folder."""
    group: str | None = None
    """Default: $WANDB_RUN_GROUP, or else the sweep's folder."""
    tags: list[str] = field(default_factory=list)
    """Default: $WANDB_TAGS; the algorithm, model, data and preference are added."""
    artifact: Artifact = Artifact.never
    samples: int = 8
    """Completions recorded at each evaluation."""

    def __post_init__(self) -> None:
        require(self.samples >= 0, "tracker.samples", f"must not be negative, not {self.samples}")
        require(all(0 < len(tag) <= 64 for tag in self.tags), "tracker.tags", "must have 1 to 64 characters each")


class Pruner(str, Enum):
    """Which runs of a sweep to stop early."""

    none = "none"
    """None."""
    median = "median"
    """Runs whose best evaluation is below the median of the others at the same step (Vizier, KDD 2017)."""
    halving = "halving"
    """Runs that are not among the best 1/reduction at a comparison step (ASHA, arXiv 1810.05934)."""


@schema
class SweepConfig:
    """Early stopping of sweep runs with `-m`; a single run ignores it."""

    pruner: Pruner = Pruner.none
    min_runs: int = 4
    """Finished runs required before `median` stops one."""
    warmup_steps: int = 0
    """Optimiser steps before any run is stopped; `halving` first compares at this step."""
    reduction: int = 3
    """η of `halving`: the best 1/η continue until the next comparison, after η times as many steps."""

    def __post_init__(self) -> None:
        require(self.min_runs >= 1, "sweep.min_runs", f"must be at least 1, not {self.min_runs}")
        require(self.warmup_steps >= 0, "sweep.warmup_steps", f"must not be negative, not {self.warmup_steps}")
        require(self.reduction >= 2, "sweep.reduction", f"must be at least 2, not {self.reduction}")


@schema
class RunConfig:
    """The run's folder."""

    dir: str | None = None
    """Default: runs/DATE_TIME_ALGO_MODEL."""

    def __post_init__(self) -> None:
        require(self.dir != "", "run.dir", "is empty: name a folder, or leave it out")
