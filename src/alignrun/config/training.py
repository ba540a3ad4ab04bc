"""Sampling, optimising, evaluating and recording."""

import math
from dataclasses import field
from enum import Enum

from alignrun.config.schema import require, schema
from alignrun.config.urls import is_base


class Engine(str, Enum):
    """What draws completions of the policy alone."""

    native = "native"
    """This process."""
    server = "server"
    """A server that holds the same base and is given the adapter, with vLLM's protocol."""


@schema
class GenerationConfig:
    """How completions are sampled."""

    max_new_tokens: int = 64
    """Longest completion, in tokens."""
    temperature: float = 1.0
    """Both policies are divided by it, in sampling and in every log-probability."""
    batch_size: int | None = None
    """Prompts decoded at once; by default the whole batch."""
    engine: Engine = Engine.native
    server_url: str | None = None
    """The server, as http://localhost:8000; its key, where it asks for one, is in $ALIGNRUN_ROLLOUT_API_KEY."""
    server_model: str | None = None
    """The base by the server's name for it; by default the one that it has."""
    server_timeout_seconds: float = 600.0
    """How long all completions of one prompt may take."""
    server_retries: int = 6
    """Attempts after the first one, while the server is down, slow or busy."""
    server_parallel: int = 64
    """Prompts in flight at once."""
    server_adapter_folder: str | None = None
    """Where adapters are written for the server to read, on a disk that both see; by default in a temporary one."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "generation.max_new_tokens", f"must be at least 1, not {self.max_new_tokens}")
        require(self.temperature > 0, "generation.temperature", f"must be positive, not {self.temperature}")
        require(self.batch_size is None or self.batch_size >= 1, "generation.batch_size", "must be at least 1")
        require(
            self.server_url is None or is_base(self.server_url),
            "generation.server_url",
            "must be http(s)://HOST[:PORT] with no query; a password or key belongs into $ALIGNRUN_ROLLOUT_API_KEY",
        )
        require(0 < self.server_timeout_seconds < math.inf, "generation.server_timeout_seconds", "must be positive")
        require(self.server_retries >= 0, "generation.server_retries", "must not be negative")
        require(self.server_parallel >= 1, "generation.server_parallel", "must be at least 1")
        if self.engine is Engine.server:
            require(
                self.server_url is not None,
                "generation.server_url",
                "is missing: name the server, as http://localhost:8000, or use generation.engine=native",
            )
            # vLLM raises a lower temperature to this one without a word.
            require(
                self.temperature >= 0.01,
                "generation.temperature",
                f"must be at least 0.01 with generation.engine=server, not {self.temperature}",
            )


class Schedule(str, Enum):
    """The learning rate after warm-up."""

    constant = "constant"
    """It stays."""
    linear = "linear"
    """It falls to 0 in a straight line."""
    cosine = "cosine"
    """It falls to 0 along half a cosine."""


@schema
class OptimConfig:
    """AdamW (arXiv 1711.05101) and its schedule."""

    learning_rate: float = 1e-4
    """The learning rate at its highest."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    beta1: float = 0.9
    """β₁, the decay of the mean of the gradients."""
    beta2: float = 0.999
    """β₂, the decay of the mean of their squares."""
    epsilon: float = 1e-8
    """Adam's ε, added to the denominator."""
    schedule: Schedule = Schedule.linear
    warmup_steps: int = 0
    """Optimiser steps in which the learning rate rises from 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "optim.learning_rate", f"must be positive, not {self.learning_rate}")
        require(self.weight_decay >= 0, "optim.weight_decay", f"must not be negative, not {self.weight_decay}")
        require(0 <= self.beta1 < 1, "optim.beta1", f"must lie in [0, 1), not {self.beta1}")
        require(0 <= self.beta2 < 1, "optim.beta2", f"must lie in [0, 1), not {self.beta2}")
        require(self.warmup_steps >= 0, "optim.warmup_steps", f"must not be negative, not {self.warmup_steps}")
        require(self.max_grad_norm >= 0, "optim.max_grad_norm", f"must not be negative, not {self.max_grad_norm}")


@schema
class TrainConfig:
    """The length of the run and what happens along it."""

    steps: int = 100
    """Optimiser steps; one of PPO or GRPO is epochs × minibatches updates from one batch of prompts."""
    batch_size: int = 16
    """Prompts in one step."""
    micro_batch_size: int | None = None
    """Prompts in one backward or scoring pass, by default the whole batch; gradients are accumulated exactly."""
    log_every: int = 1
    """Steps between records of the metrics."""
    checkpoint_every: int = 50
    """Steps between checkpoints; 0 saves only at the end and when interrupted."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept, the newest ones."""
    max_skipped_steps: int = 3
    """Steps of a run that end early because a loss or gradient in them is not finite; one more stops it."""
    max_kl: float | None = None
    """Nats of KL(π‖μ), as the samples of a step estimate it, above which the run stops with a checkpoint."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"train.{name}", f"must be at least 1, not {getattr(self, name)}")
        require(self.steps < 10**9, "train.steps", f"must be less than a billion, not {self.steps}")
        require(self.max_kl is None or self.max_kl > 0, "train.max_kl", f"must be positive, not {self.max_kl}")
        for name in ("checkpoint_every", "max_skipped_steps"):
            require(getattr(self, name) >= 0, f"train.{name}", "must not be negative")
        require(
            self.micro_batch_size is None or self.micro_batch_size >= 1, "train.micro_batch_size", "must be at least 1"
        )


@schema
class EvaluationConfig:
    """The policy against the reference on held-out prompts."""

    every: int = 0
    """Steps between evaluations; 0 evaluates only at the end."""
    samples_per_prompt: int = 1
    """Completions drawn from each side for every prompt."""
    batch_size: int = 32
    """Prompts decoded at once."""
    confidence: float = 0.95
    """Confidence level of the intervals."""
    temperature: float = 1.0
    """Temperature at which both sides are sampled."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Sample among the most likely tokens that hold this probability together."""

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
    """In the folder of the run, for `wandb sync`."""
    disabled = "disabled"
    """Nowhere."""


class Artifact(str, Enum):
    """Which adapter wandb keeps as an artifact; with adapter=none it is the whole model."""

    never = "never"
    """None."""
    end = "end"
    """That of the last step."""
    best = "best"
    """That of every evaluation that is better than all before it."""


@schema
class TrackerConfig:
    """wandb, next to metrics.jsonl and samples.jsonl, which are always written."""

    mode: WandbMode = WandbMode.auto
    project: str | None = None
    """By default $WANDB_PROJECT, or else alignrun."""
    entity: str | None = None
    """By default $WANDB_ENTITY, or else that of the account."""
    name: str | None = None
    """By default $WANDB_NAME, or else the values that a sweep gives to a run, or the run's folder."""
    group: str | None = None
    """By default $WANDB_RUN_GROUP, or else the sweep's folder."""
    tags: list[str] = field(default_factory=list)
    """By default $WANDB_TAGS; the algorithm, model, data and preference are added."""
    artifact: Artifact = Artifact.never
    samples: int = 8
    """Completions recorded at each evaluation."""

    def __post_init__(self) -> None:
        require(self.samples >= 0, "tracker.samples", f"must not be negative, not {self.samples}")
        require(all(0 < len(tag) <= 64 for tag in self.tags), "tracker.tags", "must have 1 to 64 characters each")


class Pruner(str, Enum):
    """Which runs of a sweep are stopped before their end."""

    none = "none"
    """None."""
    median = "median"
    """Those whose best evaluation so far is below the median of the others at the same step (Vizier, KDD 2017)."""
    halving = "halving"
    """Those that are not among the best 1/reduction where they are compared (ASHA, arXiv 1810.05934)."""


@schema
class SweepConfig:
    """What `-m` does with runs that fall behind; a run by itself ignores it."""

    pruner: Pruner = Pruner.none
    min_runs: int = 4
    """Runs that must have finished before `median` stops one."""
    warmup_steps: int = 0
    """Optimiser steps before which none is stopped; `halving` compares first at this step."""
    reduction: int = 3
    """η of `halving`: the best 1/η continue, to be compared again after η times as many steps."""

    def __post_init__(self) -> None:
        require(self.min_runs >= 1, "sweep.min_runs", f"must be at least 1, not {self.min_runs}")
        require(self.warmup_steps >= 0, "sweep.warmup_steps", f"must not be negative, not {self.warmup_steps}")
        require(self.reduction >= 2, "sweep.reduction", f"must be at least 2, not {self.reduction}")


@schema
class RunConfig:
    """Where the run lives."""

    dir: str | None = None
    """By default runs/DATE_TIME_ALGO_MODEL."""

    def __post_init__(self) -> None:
        require(self.dir != "", "run.dir", "is empty: name a folder, or leave it out")
