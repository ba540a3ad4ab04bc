"""The configurations of `alignrun chat` and `alignrun generate`. A null value is taken from the run."""

from enum import Enum
from typing import Any

from alignrun.config.data import DataConfig
from alignrun.config.model import Precision
from alignrun.config.schema import require, schema
from alignrun.config.selection import check_selection

MODEL_TOKENS = 512
"""Longest completion of a model that belongs to no run."""


@schema
class SamplingConfig:
    """How a policy is sampled; it keeps its own chat template."""

    max_new_tokens: int | None = None
    """Longest completion, in tokens; by default the run's, and 512 for a model."""
    temperature: float | None = None
    """Divides the logits; by default the temperature at which the run was trained, and 1 for a model."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 keeps all, and 1 is greedy."""
    top_p: float = 1.0
    """Sample among the most likely tokens with this total probability."""
    device: str | None = None
    """Overrides the run's model.device."""
    dtype: Precision | None = None
    """Overrides the run's model.dtype."""
    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        check_sampling(self)


def check_sampling(config: Any) -> None:
    """Check the settings of sampling, which several commands share. Raises InputError."""
    require(config.max_new_tokens is None or config.max_new_tokens >= 1, "max_new_tokens", "must be at least 1")
    require(config.temperature is None or config.temperature > 0, "temperature", "must be positive; top_k=1 is greedy")
    require(config.top_k >= 0, "top_k", f"must not be negative, not {config.top_k}")
    require(0 < config.top_p <= 1, "top_p", f"must lie in (0, 1], not {config.top_p}")
    require(0 <= config.seed < 1 << 63, "seed", f"must lie in [0, 2**63), not {config.seed}")


class Format(str, Enum):
    """The rows that are written."""

    jsonl = "jsonl"
    """A line for each completion: prompt, completion, sample, log_prob, ended; `algo=sft` reads them."""
    pairs = "pairs"
    """A line for each prompt: prompt, chosen, rejected, probability, of the best and the worst of its completions."""
    alpaca_eval = "alpaca_eval"
    """A JSON list of instruction, output and generator, which AlpacaEval reads as model outputs."""
    arena_hard = "arena_hard"
    """A line for each question: uid, model and messages, which Arena-Hard-Auto 2 reads as model answers."""


class Rows(str, Enum):
    """Which rows of the data are prompts."""

    all = "all"
    """Those to train on and the held-out ones, in the order of the data."""
    train = "train"
    """Those to train on."""
    heldout = "heldout"
    """The held-out ones."""


@schema
class GenerateConfig(SamplingConfig):
    """Completions of a policy for the prompts of a data set, in a file."""

    out: str | None = None
    """The file to write, which must not exist."""
    format: Format = Format.jsonl
    data: DataConfig | None = None
    """Whose prompts to complete; by default the run's own data."""
    preference: Any = None
    """What labels the pairs (format=pairs), or chooses among `candidates`; by default the run's own."""
    rows: Rows | None = None
    """Which rows of the data are prompts: all; with format=pairs, not those that the data keep held out.

    Data that hold out a share of the rows do so by a hash of the prompt: a run on the pairs holds out the same prompts.
    """
    prompts: int | None = None
    """The largest number of prompts, from the first."""
    samples: int | None = None
    """Completions for each prompt: by default 1, and 4 with format=pairs."""
    candidates: int = 8
    """N, the completions of which a policy such as best_of_nash:RUN chooses one."""
    mirror_steps: int = 20
    """T, the steps of mirror descent of a policy mirror:RUN."""
    mirror_eta: float = 1.0
    """η, the size of these steps."""
    generator: str | None = None
    """The name under which benchmarks list the policy; by default that of the folder."""
    batch_size: int = 32
    """Prompts decoded together; an interruption loses at most these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_selection(self)
        require(self.out != "", "out", "is empty: name a file")
        require(self.prompts is None or self.prompts >= 1, "prompts", f"must be at least 1, not {self.prompts}")
        require(self.samples is None or self.samples >= 1, "samples", f"must be at least 1, not {self.samples}")
        require(self.batch_size >= 1, "batch_size", f"must be at least 1, not {self.batch_size}")
        pairs = self.format is Format.pairs
        require(not pairs or self.samples != 1, "samples", "must be at least 2 with format=pairs")
        alone = self.format in (Format.alpaca_eval, Format.arena_hard)
        require(not alone or self.samples in (None, 1), "samples", f"must be 1 with format={self.format.name}")

    @property
    def drawn(self) -> int:
        """Completions for each prompt."""
        return self.samples or (4 if self.format is Format.pairs else 1)
