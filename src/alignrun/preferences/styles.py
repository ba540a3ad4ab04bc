"""Completions play a matrix game by their style: an intransitive preference on real text, constructed to be so.

A published measure stands for each action of the game. A completion plays the action whose measure is largest for it,
each measure standardised by constants that were measured once on the reference. The preference is a fixed function of
the two texts, and the game's theory holds for the shares of the styles: its equilibrium, the reward against μ and how
much each can be exploited are known in closed form.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignrun.config import require, schema
from alignrun.games import Game
from alignrun.games.files import load_game
from alignrun.preferences.base import Preference, preference
from alignrun.preferences.text_measures import TEXT_MEASURES
from alignrun.preferences.texts import TextScores

EXAMPLE = "{sentiment: {centre: 0.4, scale: 0.3}, …}"


@dataclass(frozen=True, slots=True)
class Style:
    """How the measure of a style is standardised: (s(x, y) − centre) / scale."""

    centre: float
    scale: float


def _measured() -> dict[str, Any]:
    """The constants for which the reference plays CYC's μ = (0.50, 0.30, 0.20).

    Over 32 completions of 12 tokens that SmolLM2-135M-Instruct gave, at temperature 1, to each of 32 prompts that ask
    for a short answer, eight of which are those of `experiment=styles`. The scales are standard deviations;
    correlations between the measures are at most 0.14.
    """
    return {
        "sentiment": {"centre": 0.027, "scale": 0.353},
        "brevity": {"centre": -8.82, "scale": 2.37},
        "readability": {"centre": -26.5, "scale": 17.05},
    }


@schema
class StylesConfig:
    """P(y ≻ y') = P[style(y), style(y')], style(y) = argmax_k (s_k(x, y) − centre_k) / scale_k."""

    name: str = "styles"
    styles: dict[str, Any] = field(default_factory=_measured)
    """One measure for each action of the game, in its order, on the scale of SmolLM2-135M; NAME=null leaves one out."""
    game: str = "cyc"
    """The game that the styles play: cyc, rps, dice, or a .json file with `preferences`, `reference` and `actions`."""

    def __post_init__(self) -> None:
        given = {str(name): value for name, value in self.styles.items() if value is not None}
        object.__setattr__(self, "styles", {name: _style(name, value) for name, value in given.items()})


def _style(name: str, value: object) -> Style:
    """A style of the configuration, checked."""
    key = f"preference.styles.{name}"
    require(
        name in TEXT_MEASURES, "preference.styles", f"has no measure {name}: choose from {', '.join(TEXT_MEASURES)}"
    )
    if isinstance(value, Style):
        return value
    given = dict(value) if isinstance(value, Mapping) else {}
    numbers = [part for part in given.values() if isinstance(part, int | float) and not isinstance(part, bool)]
    fits = set(given) == {"centre", "scale"} and len(numbers) == 2 and all(map(math.isfinite, numbers))
    require(fits, key, f"must be {{centre: number, scale: number}}, not {value}")
    require(given["scale"] > 0, f"{key}.scale", f"must be positive, not {given['scale']}")
    return Style(float(given["centre"]), float(given["scale"]))


class Styles(Preference):
    """P of the styles of two completions in the game's table."""

    by_pair = False

    def __init__(self, styles: Mapping[str, Style], game: Game) -> None:
        self.names = list(styles)
        self._scores = [TextScores.by_row(TEXT_MEASURES[name].score) for name in styles]
        self._centres = torch.tensor([style.centre for style in styles.values()], dtype=torch.float64)
        self._scales = torch.tensor([style.scale for style in styles.values()], dtype=torch.float64)
        self._table = game.preferences
        self._played = torch.zeros(len(styles), dtype=torch.long)

    def styles(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] the number of each completion's style; of equal ones the first."""
        scores = torch.stack([measure(prompts, completions) for measure in self._scores], 1)
        return ((scores - self._centres) / self._scales).argmax(1)

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] entries of the game's table."""
        ours, theirs = self.styles(prompts, first), self.styles(prompts, second)
        self._played += ours.bincount(minlength=len(self.names))
        return self._table[ours, theirs].float()

    def drain(self) -> dict[str, float]:
        """The share of each style among the first completions of the pairs since the last call."""
        played, self._played = self._played, torch.zeros_like(self._played)
        if not (total := int(played.sum())):
            return {}
        return {f"style/{name}": count / total for name, count in zip(self.names, played.tolist(), strict=True)}

    def expect(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Start on the scores."""
        for measure in self._scores:
            measure.expect(prompts, completions)


def check(config: StylesConfig) -> None:
    """Require a measure for each action. Raises InputError, also as `load_game`."""
    actions = len(load_game(config.game).actions)
    require(
        len(config.styles) == actions,
        "preference.styles",
        f"must name one measure for each of the {actions} actions of {config.game}, as in {EXAMPLE}, "
        f"not {len(config.styles)} (preference.styles.NAME=null leaves one out)",
    )


@preference("styles", StylesConfig, check=check)
def build(config: StylesConfig) -> Preference:
    """The preference that the configuration asks for."""
    return Styles(config.styles, load_game(config.game))
