"""The interface of preferences: P(y ≻ y' | x), antisymmetric.

Prompts are texts. Those of a data set are `Prompt`s, which also hold the conversation as messages and the row's other
columns; `as_prompt` converts any text.
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
    """Probabilities of B pairs, before averaging the orders and replacing missing ones by ½."""

    probabilities: Tensor
    """[B] P(first ≻ second), on the CPU; NaN if it could not judge."""
    orders: Tensor | None = None
    """[B, 2] P(first ≻ second) with `first` shown first, and with it shown second; NaN as above.

    None for a preference that sees one completion at a time, or both without an order.
    """

    @classmethod
    def in_both_orders(cls, probabilities: Tensor, wins: Tensor) -> "Judgment":
        """From the probabilities that the completion shown first wins, [B, 2] in both orders."""
        return cls(probabilities, torch.stack([wins[:, 0], 1 - wins[:, 1]], dim=1))


class Preference(ABC):
    """A pairwise preference with P(y ≻ y' | x) + P(y' ≻ y | x) = 1."""

    by_pair: bool = True
    """Whether each pair is a separate question. If not, each of K completions is read once for all of its pairs."""

    members: Sequence[str] = ()
    """The names of the preferences that vote in it; most have none."""

    @abstractmethod
    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] probabilities that `first` is preferred to `second`, one for each prompt, on the CPU."""

    def votes(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[M, B] its members' probabilities, or [1, B] its own; `settle` makes them its answer."""
        return self(prompts, first, second)[None]

    def settle(self, votes: Tensor) -> Tensor:
        """[B] its answer to `votes`."""
        return votes[0]

    def for_learner(self, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> Tensor:
        """[B] P(ours ≻ theirs) for training the policy of `ours`; the same unless a rule depends on the whole batch."""
        return self(prompts, ours, theirs)

    def judge(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Judgment:
        """The probabilities with the details that an evaluation of the preference uses."""
        return Judgment(self(prompts, first, second))

    def check(self, examples: Iterable[Example]) -> None:
        """Check that the rows to be judged have what it needs. Raises InputError if something is missing."""
        return  # most need nothing

    def expect(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Announce completions that will be judged soon; a preference may start on them in the background."""
        return  # most cannot

    def counts(self) -> dict[str, float]:
        """Counts so far that a user should see, for the metrics of an evaluation."""
        return {}

    def drain(self) -> dict[str, float]:
        """Means over the questions since the last call, for the metrics of a step or an evaluation."""
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
        """[B] rewards r(x, y); NaN if there is none."""

    def log_odds(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] r(x, y) / temperature: differences are the log-odds of the preference.

        A completion without a reward gets the mean of its prompt's others, which is neutral.
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
        """[B] σ of the reward difference, ½ if one has no reward."""
        return self.judge(prompts, first, second).probabilities.nan_to_num(0.5)

    def judge(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Judgment:
        """The same, NaN if one has no reward. A completion in several pairs is scored once."""
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
    """The identity of a prompt: rows may share their text but not their answer."""
    return prompt.identity if isinstance(prompt, Prompt) else prompt


@dataclass(frozen=True, slots=True)
class PreferenceKind:
    """A registered kind of preference, and how to build it."""

    config_class: type
    """The dataclass that types its YAML."""
    build: Callable[..., Preference]
    """Builds it from its configuration; a feedback model also takes the run's backbone."""
    feedback: str
    """The kind of feedback model in its `path`, which may share the policy's base; else empty."""
    check: Callable[[Any], object]
    """Refuses invalid settings before anything is loaded."""
    on_base: bool
    """Whether `build` also takes the run's backbone."""
    empty: Callable[[PreTrainedConfig], nn.Module] | None
    """Builds the model that a hub id or folder in `path` holds, from its architecture alone, for the memory plan."""
    columns: Callable[[Any], Collection[str] | None]
    """The columns of a row, besides its texts, that it reads; None for all of them."""
    by_pair: Callable[[Any], bool]
    """The value of `Preference.by_pair`, known before building."""


_registered: dict[str, PreferenceKind] = {}
"""Read through `discover`: a preference is registered when its module is imported."""


def preference_in_words(section: Any) -> str:
    """A short description of a preference: its name and its distinguishing settings."""
    named = ("model", "path", "function", "measure", "game")
    telling = [str(value) for key in named if (value := getattr(section, key, None))]
    members = getattr(section, "members", {})
    telling += [f"{name}: {preference_in_words(member)}" for name, member in members.items()]
    return f"{section.name} ({', '.join(telling)})" if telling else str(section.name)


def preference_using(feedback: str) -> str:
    """The name of the preference that uses a kind of feedback model."""
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
    """Register a preference under the name in its YAML."""

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
