"""The configuration of `alignrun eval`. A null value is taken from the runs, which must agree on it."""

from dataclasses import field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from alignrun.config.data import DataConfig
from alignrun.config.model import Precision
from alignrun.config.sampling import check_sampling
from alignrun.config.schema import require, schema
from alignrun.config.selection import check_selection
from alignrun.config.training import Artifact, RunConfig, TrackerConfig


class ComparedPairs(str, Enum):
    """Which completions of two policies to compare."""

    all = "all"
    """All pairs: K² comparisons of two policies per prompt; the least variance, and needed for exploitability."""
    matched = "matched"
    """The k-th with the k-th: K comparisons, for expensive judges."""


@schema
class TournamentConfig:
    """Every policy against every other on held-out prompts."""

    runs: list[str] = field(default_factory=list)
    """Run directories, checkpoints (RUN/checkpoints/step-N), choices of `alignrun ls model`, model folders or hub ids.

    A rule before a name plays the best of its samples: best_of_nash:RUN, mirror:RUN, borda:RUN, bradley_terry:RUN. The
    reference is added automatically.
    """
    names: list[str] = field(default_factory=list)
    """Display names, in the same order; by default the names of the folders."""
    reference_policy: str | None = None
    """The reference for KL, win rates and ratings, in the same forms; by default the runs' own reference."""
    data: DataConfig | None = None
    preference: Any = None
    """The judge. If it differs from the training preference, both are evaluated: the hacking gap."""
    selector: Any = None
    """What chooses among `candidates` (preference@selector=NAME); by default the judge."""
    tracker: TrackerConfig = MISSING
    prompts: int | None = None
    """The largest number of held-out prompts."""
    samples_per_prompt: int = 4
    """Completions per policy and prompt."""
    candidates: int = 8
    """N, the completions of which a player such as best_of_nash:RUN chooses one."""
    mirror_steps: int = 20
    """T, the steps of mirror descent of a player mirror:RUN."""
    mirror_eta: float = 1.0
    """η, the size of these steps."""
    pairing: ComparedPairs = ComparedPairs.all
    max_new_tokens: int | None = None
    """Longest completion, in tokens."""
    temperature: float | None = None
    """Temperature at which every policy is sampled."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Sample among the most likely tokens with this total probability."""
    kl_tau: float | None = None
    """τ of the regularised game."""
    hacking_gap: bool = True
    """Evaluate the training preference too, if it is not the judge."""
    exact: bool = True
    """On games, use the policies' exact probabilities instead of samples."""
    batch_size: int = 32
    """Prompts decoded together."""
    confidence: float = 0.95
    """Confidence level of the intervals."""
    cache: bool = True
    """Cache completions in the user's cache, keyed by weights, prompts and settings."""
    device: str | None = None
    """Overrides the runs' model.device."""
    dtype: Precision | None = None
    """Overrides the runs' model.dtype."""
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0
    """Seed of sampling and of the intervals."""

    def __post_init__(self) -> None:
        require(len(self.runs) > 0, "runs", "is empty: name policies, as in runs='[runs/a,runs/b]'")
        require(all(self.runs), "runs", "names nothing between two commas")
        counted = not any(set("*?[") & set(run) for run in self.runs)  # a pattern stands for any number of runs
        agree = not self.names or not counted or len(self.names) == len(self.runs)
        require(agree, "names", "must have as many entries as runs, or none")
        require(
            self.tracker.artifact is Artifact.never, "tracker.artifact", "must be never: a tournament trains nothing"
        )
        require(len(set(self.names)) == len(self.names), "names", "must differ from each other")
        require(self.prompts is None or self.prompts >= 1, "prompts", f"must be at least 1, not {self.prompts}")
        require(
            self.samples_per_prompt >= 1, "samples_per_prompt", f"must be at least 1, not {self.samples_per_prompt}"
        )
        check_sampling(self)
        check_selection(self)
        require(self.kl_tau is None or self.kl_tau > 0, "kl_tau", "must be positive")
        require(self.batch_size >= 1, "batch_size", f"must be at least 1, not {self.batch_size}")
        require(0 < self.confidence < 1, "confidence", f"must lie in (0, 1), not {self.confidence}")
