"""Published numbers, computed again: one module for each experiment, run by `scripts/reproduce.py`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Number:
    """One published number and ours."""

    quantity: str
    published: float
    ours: float
    relative: float
    """The largest relative difference that its printed digits and its precision allow."""
    absolute: float = 0.0
    """The same as an absolute difference, for numbers that are zero up to rounding."""

    @property
    def agrees(self) -> bool:
        """Whether ours is the published number."""
        return abs(self.ours - self.published) <= self.relative * abs(self.published) + self.absolute


@dataclass(frozen=True, slots=True)
class Curve:
    """A measured quantity over steps, and the bound that a theorem gives."""

    name: str
    steps: Sequence[int]
    measured: Sequence[float]
    bound: Sequence[float]

    @property
    def holds(self) -> bool:
        """Whether the measurement stays within its bound at every step."""
        return all(value <= limit + 1e-12 for value, limit in zip(self.measured, self.bound, strict=True))


@dataclass(frozen=True, slots=True)
class Result:
    """What one experiment found."""

    numbers: Sequence[Number] = ()
    curves: Sequence[Curve] = ()
    findings: Sequence[str] = ()
    """Sentences about numbers that nobody has published."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A published experiment that can be run again."""

    name: str
    title: str
    source: str
    run: Callable[[], Result]
