"""What a preference is: P(y ≻ y' | x), antisymmetric.

Prompts are texts. Those of a data set are `Prompt`s, which also hold the conversation as messages and the other columns
of the row; `as_prompt` makes one of any text.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from alignrun.discovery import import_all
from alignrun.models.backbone import Backbone
from alignrun.types import Example, Prompt

Build = TypeVar("Build", bound=Callable[..., "Preference"])


@dataclass(frozen=True, slots=True)
class Judgment:
    """What a preference says about B pairs, before the orders are averaged and ½ stands in for what is not judged."""

    probabilities: Tensor
    """[B] P(first ≻ second), on the CPU; NaN where it could not judge."""
    orders: Tensor | None = None
    """[B, 2] P(first ≻ second) where `first` is shown first, and where it is shown second; NaN as above.

    None for a preference that sees one completion at a time, or both without an order.
    """

    @classmethod
    def in_both_orders(cls, probabilities: Tensor, wins: Tensor) -> "Judgment":
        """From how likely the completion shown first wins, [B, 2] with `first` there and with `second` there."""
        return cls(probabilities, torch.stack([wins[:, 0], 1 - wins[:, 1]], dim=1))


class Preference(ABC):
    """A pairwise preference with P(y ≻ y' | x) + P(y' ≻ y | x) = 1."""

    by_pair: bool = True
    """Whether every pair is a question of its own. Where it is not, completions are read one by one, and all pairs of K
    of them cost no more than K readings."""

    @abstractmethod
    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] probabilities that `first` is preferred to `second`, one for each prompt, on the CPU."""

    def for_learner(self, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> Tensor:
        """[B] P(ours ≻ theirs) for the policy of `ours` to raise; the same, unless a rule looks at the whole batch."""
        return self(prompts, ours, theirs)

    def judge(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Judgment:
        """The same with what an evaluation of the preference itself looks at."""
        return Judgment(self(prompts, first, second))

    def check(self, examples: Iterable[Example]) -> None:
        """Look for what it needs in the rows that it will be asked about. Raises InputError where that is missing."""
        return  # most need nothing

    def expect(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Completions that will be judged soon: a preference may start on them in the background."""
        return  # most cannot

    def counts(self) -> dict[str, float]:
        """What a preference has counted so far and a user should see, for the metrics of an evaluation."""
        return {}

    def drain(self) -> dict[str, float]:
        """Means over what it was asked since the last call, for the metrics of a step or of an evaluation."""
        return {}


class Reward(Preference):
    """A scalar reward as a preference: P(y ≻ y' | x) = σ((r(x, y) − r(x, y')) / temperature).

    The Bradley-Terry model (arXiv 2310.12036 eq. 1) at temperature 1. It can only express transitive preferences.
    """

    by_pair = False

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    @abstractmethod
    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] rewards r(x, y); NaN where there is none."""

    def log_odds(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] r(x, y) / temperature: differences are the log-odds of the preference.

        What has no reward gets the mean of its prompt's others, which favours and blames nothing.
        """
        rewards = self.rewards(prompts, completions) / self._temperature
        known = ~rewards.isnan()
        if bool(known.all()):
            return rewards
        names = [identity(prompt) for prompt in prompts]
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        rows = torch.tensor([places[name] for name in names])
        sums, counts = (
            torch.zeros(len(places)).index_add(0, rows, part) for part in (rewards.nan_to_num(), known.float())
        )
        return torch.where(known, rewards, (sums / counts.clamp(min=1))[rows])

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] σ of the reward difference, ½ where one has none."""
        return self.judge(prompts, first, second).probabilities.nan_to_num(0.5)

    def judge(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Judgment:
        """The same, NaN where one has none. A completion in several pairs is scored once."""
        places: dict[tuple[str, str], int] = {}
        asked: list[tuple[str, str]] = []

        def place(prompt: str, completion: str) -> int:
            found = places.setdefault((identity(prompt), completion), len(asked))
            if found == len(asked):
                asked.append((prompt, completion))
            return found

        ours, theirs = ([place(*pair) for pair in zip(prompts, side, strict=True)] for side in (first, second))
        rewards = self.rewards([prompt for prompt, _ in asked], [completion for _, completion in asked])
        return Judgment(torch.sigmoid((rewards[ours] - rewards[theirs]) / self._temperature))


def identity(prompt: str) -> str:
    """What tells a prompt from others: rows may share their text, and not their answer."""
    return prompt.identity if isinstance(prompt, Prompt) else prompt


@dataclass(frozen=True, slots=True)
class PreferenceKind:
    """How a preference is made."""

    config_class: type
    """The dataclass that types its YAML."""
    build: Callable[..., Preference]
    """From its configuration; where it is a feedback model, also from the run's backbone."""
    feedback: str
    """The kind of feedback model that its `path` names, which may stand on the base of the policy; else empty."""
    check: Callable[[Any], object]
    """Refuses what can be refused before anything is loaded."""
    on_base: bool
    """Whether it is also given the run's backbone."""
    empty: Callable[[PreTrainedConfig], nn.Module] | None
    """Builds the model that a hub id or folder in `path` holds, from its architecture alone, for the memory plan."""
    columns: Callable[[Any], Collection[str] | None]
    """The columns of a row, besides its texts, that it reads; None for all of them."""
    by_pair: Callable[[Any], bool]
    """Whether what it builds is `Preference.by_pair`, before it is built."""


_registered: dict[str, PreferenceKind] = {}
"""Read through `discover`: a preference is entered when the rest of its module runs."""


def preference_in_words(section: Any) -> str:
    """A short description of a preference: its name and its distinguishing settings."""
    named = ("model", "path", "function", "measure", "game")
    telling = [str(value) for key in named if (value := getattr(section, key, None))]
    members = getattr(section, "members", {})
    telling += [f"{name}: {preference_in_words(member)}" for name, member in members.items()]
    return f"{section.name} ({', '.join(telling)})" if telling else str(section.name)


def preference_using(feedback: str) -> str:
    """The name of the preference that a kind of feedback model is for."""
    return next(name for name, kind in discover().items() if kind.feedback == feedback)


def _nothing(_config: Any) -> tuple[str, ...]:
    return ()


def _never(_config: Any) -> bool:
    return False


def always(_config: Any) -> bool:
    """For `by_pair` of a preference that always judges pair by pair."""
    return True


def preference(
    name: str,
    config_class: type,
    *,
    feedback: str = "",
    check: Callable[[Any], object] = _nothing,
    on_base: bool = False,
    empty: Callable[[PreTrainedConfig], nn.Module] | None = None,
    columns: Callable[[Any], Collection[str] | None] = _nothing,
    by_pair: Callable[[Any], bool] = _never,
) -> Callable[[Build], Build]:
    """Register how a preference is made, under the name that its YAML gives."""

    def register(build: Build) -> Build:
        _registered[name] = PreferenceKind(config_class, build, feedback, check, on_base, empty, columns, by_pair)
        return build

    return register


def discover() -> dict[str, PreferenceKind]:
    """Import every module of this package, so that a new file is a preference without further wiring."""
    import_all("alignrun.preferences")
    return _registered


def build_preference(section: Any, backbone: Backbone | None = None) -> Preference:
    """Build the preference of a section; a learned one shares the backbone if it can."""
    kind = discover()[section.name]
    return kind.build(section, backbone) if kind.on_base else kind.build(section)
