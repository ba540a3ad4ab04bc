"""The typed configuration: what the YAML files under conf/ may say, and the checks that need no model.

Every section is a frozen dataclass. Hydra merges the YAML and the overrides into it, so an unknown key or a
wrong type is refused where it stands. Checks between fields live in `__post_init__` and in `Config`.
"""

from dataclasses import field
from typing import Any

from omegaconf import MISSING

from alignrun.config.data import BadRows, ColumnsConfig, DataConfig, TooLong, TrainOn
from alignrun.config.model import (
    AdapterConfig,
    AdapterKind,
    Attention,
    Kernels,
    ModelConfig,
    ModelSource,
    Precision,
    ReferenceConfig,
    ReferenceKind,
)
from alignrun.config.preference_evaluation import JudgedRows, PreferenceEvaluationConfig
from alignrun.config.published import LongText, PublishedConfig, Quantize
from alignrun.config.sampling import MODEL_TOKENS, Format, GenerateConfig, Rows, SamplingConfig
from alignrun.config.schema import AUTO, FromData, require, schema
from alignrun.config.selection import Selection
from alignrun.config.served import ServedConfig
from alignrun.config.tournament import ComparedPairs, TournamentConfig
from alignrun.config.training import (
    Artifact,
    Engine,
    EvaluationConfig,
    GenerationConfig,
    Opponents,
    OptimConfig,
    Pruner,
    RunConfig,
    Schedule,
    ServerKind,
    SweepConfig,
    TrackerConfig,
    TrainConfig,
    WandbMode,
)

__all__ = [
    "AUTO",
    "MODEL_TOKENS",
    "AdapterConfig",
    "AdapterKind",
    "Artifact",
    "Attention",
    "BadRows",
    "ColumnsConfig",
    "ComparedPairs",
    "Config",
    "DataConfig",
    "Engine",
    "EvaluationConfig",
    "Format",
    "FromData",
    "GenerateConfig",
    "GenerationConfig",
    "JudgedRows",
    "Kernels",
    "LongText",
    "ModelConfig",
    "ModelSource",
    "Opponents",
    "OptimConfig",
    "Precision",
    "PreferenceEvaluationConfig",
    "Pruner",
    "PublishedConfig",
    "Quantize",
    "ReferenceConfig",
    "ReferenceKind",
    "Rows",
    "RunConfig",
    "SamplingConfig",
    "Schedule",
    "Selection",
    "ServedConfig",
    "ServerKind",
    "SweepConfig",
    "TooLong",
    "TournamentConfig",
    "TrackerConfig",
    "TrainConfig",
    "TrainOn",
    "WandbMode",
    "require",
    "schema",
]


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
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 0
    """Seed of everything random: the same seed gives the same run."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 1 << 63, "seed", f"must lie in [0, 2**63), not {self.seed}")
