"""What a preference is: P(y ≻ y' | x), antisymmetric."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from alignrun.discovery import import_all

Build = TypeVar("Build", bound=Callable[..., "Preference"])


class Preference(ABC):
    """A pairwise preference with P(y ≻ y' | x) + P(y' ≻ y | x) = 1."""

    @abstractmethod
    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] probabilities that `first` is preferred to `second`, one for each prompt, on the CPU."""

    def counts(self) -> dict[str, float]:
        """What a preference has counted so far and a user should see, for the metrics of an evaluation."""
        return {}


class Reward(Preference):
    """A scalar reward as a preference: P(y ≻ y' | x) = σ((r(x, y) − r(x, y')) / temperature).

    The Bradley-Terry model (arXiv 2310.12036 eq. 1) at temperature 1. It can only express transitive preferences.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    @abstractmethod
    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] rewards r(x, y)."""

    def log_odds(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] r(x, y) / temperature: differences are the log-odds of the preference."""
        return self.rewards(prompts, completions) / self._temperature

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] σ of the reward difference. A completion that stands in several pairs is scored once."""
        places: dict[tuple[str, str], int] = {}
        ours, theirs = (
            [places.setdefault(pair, len(places)) for pair in zip(prompts, side, strict=True)]
            for side in (first, second)
        )
        rewards = self.rewards([prompt for prompt, _ in places], [completion for _, completion in places])
        return torch.sigmoid((rewards[ours] - rewards[theirs]) / self._temperature)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a preference is made."""

    config_class: type
    """The dataclass that types its YAML."""
    build: Callable[..., Preference]
    """From its configuration; where it is a feedback model, also from the run's backbone."""
    feedback: str
    """The kind of feedback model that its `path` names, which may stand on the base of the policy; else empty."""


PREFERENCES: dict[str, Kind] = {}


def preference_using(feedback: str) -> str:
    """The name of the preference that a kind of feedback model is for."""
    return next(name for name, kind in discover().items() if kind.feedback == feedback)


def preference(name: str, config_class: type, *, feedback: str = "") -> Callable[[Build], Build]:
    """Register how a preference is made, under the name that its YAML gives."""

    def register(build: Build) -> Build:
        PREFERENCES[name] = Kind(config_class, build, feedback)
        return build

    return register


def discover() -> dict[str, Kind]:
    """Import every module of this package, so that a new file is a preference without further wiring."""
    import_all("preference")
    return PREFERENCES
