"""What an evaluation tells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from alignrun.types import Sample


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The policy at one step, measured."""

    metrics: dict[str, float]
    """Logged under `eval/`."""
    lines: Sequence[tuple[str, str]]
    """The same for a person: what, and how much."""
    samples: Sequence[Sample] = field(default_factory=tuple)


Evaluator = Callable[[], Evaluation]
