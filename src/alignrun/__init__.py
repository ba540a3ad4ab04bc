"""alignrun: game-theoretic alignment of language models, driven by configuration.

`train`, `resume`, `evaluate`, `generate` and `load_policy` do what the commands do. What they need is imported when one
of them is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alignrun.errors import AlignrunError, InputError, RunError

if TYPE_CHECKING:
    from alignrun.api import (
        EvaluationResult,
        Generated,
        LoadedPolicy,
        TrainingResult,
        evaluate,
        generate,
        load_policy,
        resume,
        train,
    )
    from alignrun.completions.command import Written
    from alignrun.evaluation.results import Estimate, PlayerResult, TournamentResult

__version__ = "0.1.0"

__all__ = [
    "AlignrunError",
    "Estimate",
    "EvaluationResult",
    "Generated",
    "InputError",
    "LoadedPolicy",
    "PlayerResult",
    "RunError",
    "TournamentResult",
    "TrainingResult",
    "Written",
    "__version__",
    "evaluate",
    "generate",
    "load_policy",
    "resume",
    "train",
]

_ELSEWHERE = {
    "Estimate": "evaluation.results",
    "PlayerResult": "evaluation.results",
    "TournamentResult": "evaluation.results",
    "Written": "completions.command",
}
"""Public names that are not in `alignrun.api` → their module."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"alignrun.{_ELSEWHERE.get(name, 'api')}"), name)
    raise AttributeError(f"module 'alignrun' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
