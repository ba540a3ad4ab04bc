"""The configuration of `alignrun eval-preference`."""

from dataclasses import field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from alignrun.config.data import DataConfig
from alignrun.config.schema import require, schema
from alignrun.config.training import RunConfig


class JudgedRows(str, Enum):
    """Which rows of the data are judged."""

    all = "all"
    """Every row."""
    heldout = "heldout"
    """The rows that a run with the same data holds out, for feedback models that were trained on the others."""


@schema
class PreferenceEvaluationConfig:
    """How good a preference is, on pairs that people or a benchmark have labelled."""

    preference: Any = MISSING
    data: DataConfig = MISSING
    rows: JudgedRows = JudgedRows.all
    pairs: int | None = None
    """The number of pairs to judge, drawn at random; null for all."""
    category: str | None = None
    """The column that sorts pairs into categories; by default one of subset, category, source, motivation_app, …"""
    triples: int = 20
    """The largest number of triples of answers to one prompt that are checked for intransitivity; 0 for none."""
    confidence: float = 0.95
    """Confidence level of the intervals."""
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0
    """Seed of the intervals and of what is drawn at random."""

    def __post_init__(self) -> None:
        for key in ("max_prompt_tokens", "max_completion_tokens"):
            unset = getattr(self.data, key) is None
            require(unset, f"data.{key}", "is not valid with eval-preference, where no policy reads the rows")
        sized = self.rows is JudgedRows.heldout or self.data.eval_size == DataConfig.eval_size
        require(sized, "data.eval_size", "is for rows=heldout: write pairs=N for fewer pairs")
        require(self.pairs is None or self.pairs >= 1, "pairs", f"must be at least 1, not {self.pairs}")
        require(self.triples >= 0, "triples", f"must not be negative, not {self.triples}")
        require(0 < self.confidence < 1, "confidence", f"must lie in (0, 1), not {self.confidence}")
        require(0 <= self.seed < 1 << 63, "seed", f"must lie in [0, 2**63), not {self.seed}")
