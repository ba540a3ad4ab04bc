"""The typed configuration: what the YAML files under conf/ may say, and the checks that need no model.

Every section is a frozen dataclass. Hydra merges the YAML and the overrides into it, so an unknown key or a
wrong type is refused where it stands. Checks between fields live in `__post_init__` and in `Config`.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar, dataclass_transform

from omegaconf import MISSING

from alignrun.errors import InputError

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def schema(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass that Hydra can still compose into.

    OmegaConf turns a dataclass declared frozen into a read-only node, into which no YAML can be merged. The flag
    that it looks at is lowered here; the objects themselves stay frozen, since `__setattr__` is already in place.
    """
    frozen: Any = dataclass(frozen=True)(cls)
    frozen.__dataclass_params__.frozen = False
    return frozen  # type: ignore[no-any-return]


def require(condition: bool, key: str, problem: str) -> None:
    """Refuse a configuration: `key` is what the user must change, `problem` says why and to what."""
    if not condition:
        raise InputError(f"config: {key} {problem}")


class ModelSource(str, Enum):
    """Where the weights of a model come from."""

    hub = "hub"
    """A Hugging Face id or a local folder."""
    package = "package"
    """A GGUF file inside an installed Python package, or the hub id where the package is missing."""
    random = "random"
    """Random weights with a byte tokenizer, for tests."""
    game = "game"
    """A tiny model whose completions are the actions of a matrix game."""


class Precision(str, Enum):
    """The floating-point type of the base weights; `auto` is bfloat16 on CUDA and on CPUs with bfloat16 products, else
    float32. Adapters are float32 always."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Attention(str, Enum):
    """The attention kernel that transformers uses."""

    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


@schema
class ModelConfig:
    """Which base model, and how it is held in memory."""

    name: str = MISSING
    source: ModelSource = ModelSource.hub
    path: str | None = None
    """Hub id or local folder (source=hub)."""
    revision: str | None = None
    trust_remote_code: bool = False
    package: str | None = None
    """Python package that carries `package_file` (source=package)."""
    package_file: str | None = None
    fallback: str | None = None
    """Hub id to use where the package is not installed (source=package)."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Fields of the transformers configuration: what to build (source=random), or what to plan with when the hub
    cannot be asked."""
    dtype: Precision = Precision.auto
    attention: Attention = Attention.sdpa
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    system_prompt: str | None = None
    """Put before every prompt, where the chat template takes one."""
    chat_template: str | None = None
    """A Jinja template instead of the tokenizer's own."""

    def __post_init__(self) -> None:
        if self.source is not ModelSource.hub:
            require(self.path is None, "model.path", f"is of no use with model={self.name}: choose model=path")


class AdapterKind(str, Enum):
    """What is trained."""

    lora = "lora"
    qlora = "qlora"
    none = "none"


@schema
class AdapterConfig:
    """The trained part of the policy: a LoRA adapter (arXiv 2106.09685), QLoRA (arXiv 2305.14314), or all weights."""

    name: AdapterKind = AdapterKind.lora
    rank: int = 16
    alpha: float = 32.0
    """The low-rank product is multiplied by alpha / rank."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of linear layers, or `all-linear` for every one but the vocabulary head."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, "adapter.rank", f"must be at least 1, not {self.rank}")
        require(self.alpha > 0, "adapter.alpha", f"must be positive, not {self.alpha}")
        require(len(self.target_modules) > 0, "adapter.target_modules", "is empty: name layers, or all-linear")


class ReferenceKind(str, Enum):
    """Which frozen policy is the reference μ."""

    base = "base"
    """The base model with no adapter."""
    adapter = "adapter"
    """The base model with a frozen adapter, for example one trained by SFT; the policy starts as its copy, so that
    rank and layers are the adapter's own."""


@schema
class ReferenceConfig:
    """The reference policy μ that the KL penalty and the mixture pull towards."""

    name: ReferenceKind = ReferenceKind.base
    path: str | None = None
    """A run directory or a PEFT adapter folder (reference=adapter)."""

    def __post_init__(self) -> None:
        if self.name is ReferenceKind.adapter:
            require(bool(self.path), "reference.path", "is missing: name a run or an adapter folder")
        else:
            require(self.path is None, "reference.path", "is of no use with reference=base: choose reference=adapter")


class DataSource(str, Enum):
    """Where prompts come from."""

    bundled = "bundled"
    jsonl = "jsonl"
    hub = "hub"
    inline = "inline"


class TooLong(str, Enum):
    """What to do with a prompt that does not fit."""

    error = "error"
    skip = "skip"


@schema
class ColumnsConfig:
    """The names of the columns in a data set."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


@schema
class DataConfig:
    """Prompts to train on, and held-out prompts to evaluate on."""

    name: str = MISSING
    source: DataSource = DataSource.bundled
    path: str | None = None
    """A .jsonl, .jsonl.gz or .json file (source=jsonl), or a data set id (source=hub)."""
    eval_path: str | None = None
    """A second file of held-out rows (source=jsonl)."""
    subset: str | None = None
    """The configuration of the data set, where it has several (source=hub)."""
    split: str = "train"
    eval_split: str | None = None
    """The held-out split (source=hub)."""
    prompts: list[str] = field(default_factory=list)
    """The prompts themselves (source=inline); they are trained on and evaluated on."""
    eval_fraction: float = 0.1
    """Share of rows held out, chosen by a hash of the prompt, where no held-out file or split is named."""
    eval_size: int | None = None
    """Evaluate on at most this many held-out prompts."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    max_prompt_tokens: int | None = None
    """Longest prompt in tokens; by default what the model's context leaves beside generation.max_new_tokens."""
    too_long: TooLong = TooLong.error

    def __post_init__(self) -> None:
        if self.source in (DataSource.jsonl, DataSource.hub):
            wanted = "a file" if self.source is DataSource.jsonl else "a data set id"
            require(bool(self.path), "data.path", f"is missing: name {wanted}, as in data.path=...")
        else:
            require(
                self.path is None, "data.path", f"is of no use with data={self.name}: choose data=jsonl or data=hub"
            )
        for name, value, source in (
            ("prompts", self.prompts, DataSource.inline),
            ("eval_path", self.eval_path, DataSource.jsonl),
            ("eval_split", self.eval_split, DataSource.hub),
            ("subset", self.subset, DataSource.hub),
        ):
            require(not value or self.source is source, f"data.{name}", f"is of no use without data={source.value}")
        if self.source is DataSource.inline:
            require(len(self.prompts) > 0, "data.prompts", "is empty: give at least one, as in data.prompts='[Hello]'")
        require(0 < self.eval_fraction < 1, "data.eval_fraction", f"must lie in (0, 1), not {self.eval_fraction}")
        require(self.eval_size is None or self.eval_size >= 1, "data.eval_size", "must be at least 1")
        require(
            self.max_prompt_tokens is None or self.max_prompt_tokens >= 1,
            "data.max_prompt_tokens",
            "must be at least 1",
        )


@schema
class GenerationConfig:
    """How completions are sampled."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    """Both policies are divided by it, in sampling and in every log-probability."""
    batch_size: int | None = None
    """Prompts decoded at once; by default the whole batch."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "generation.max_new_tokens", f"must be at least 1, not {self.max_new_tokens}")
        require(self.temperature > 0, "generation.temperature", f"must be positive, not {self.temperature}")
        require(self.batch_size is None or self.batch_size >= 1, "generation.batch_size", "must be at least 1")


class Schedule(str, Enum):
    """The learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@schema
class OptimConfig:
    """AdamW (arXiv 1711.05101) and its schedule."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    schedule: Schedule = Schedule.linear
    warmup_steps: int = 0
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
    """Optimiser steps."""
    batch_size: int = 16
    """Prompts in one step."""
    micro_batch_size: int | None = None
    """Prompts in one backward pass; gradients are accumulated exactly. By default the whole batch."""
    log_every: int = 1
    checkpoint_every: int = 50
    """Steps between checkpoints; 0 saves only at the end and when interrupted."""
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"train.{name}", f"must be at least 1, not {getattr(self, name)}")
        require(self.checkpoint_every >= 0, "train.checkpoint_every", "must not be negative")
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
    temperature: float = 1.0
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
    """Where wandb records go; `auto` is online with a key and a network, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@schema
class TrackerConfig:
    """wandb, beside metrics.jsonl and samples.jsonl, which are always written."""

    mode: WandbMode = WandbMode.auto
    project: str = "alignrun"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    samples: int = 8
    """Completions recorded at each evaluation."""

    def __post_init__(self) -> None:
        require(self.samples >= 0, "tracker.samples", f"must not be negative, not {self.samples}")


@schema
class RunConfig:
    """Where the run lives."""

    dir: str | None = None
    """By default runs/DATE_TIME_ALGO_MODEL."""


@schema
class Config:
    """Everything that one run is made of. `algo` and `preference` are typed by the class that each YAML names."""

    algo: Any = MISSING
    model: ModelConfig = MISSING
    adapter: AdapterConfig = MISSING
    reference: ReferenceConfig = MISSING
    data: DataConfig = MISSING
    preference: Any = MISSING
    generation: GenerationConfig = MISSING
    optim: OptimConfig = MISSING
    tracker: TrackerConfig = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1 << 63, "seed", f"must lie in [0, 2**63), not {self.seed}")
