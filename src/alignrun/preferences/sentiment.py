"""The more positive completion by the VADER lexicon, without a network (Hutto and Gilbert, ICWSM 2014).

Steering generation towards positive sentiment is the classic controlled experiment of preference optimisation
(arXiv 1909.08593 §3.1, arXiv 2305.18290 §6). VADER needs no network and no GPU, and its compound score in [−1, 1]
was fitted to human ratings.
"""

from collections.abc import Sequence

from torch import Tensor

from alignrun.config import require, schema
from alignrun.preferences.base import Preference, Reward, preference
from alignrun.preferences.texts import TextScores
from alignrun.preferences.vader import compound


@schema
class SentimentConfig:
    """P(y ≻ y') = σ((s(y) − s(y')) / temperature) with s the compound score."""

    name: str = "sentiment"
    temperature: float = 0.05
    """The smaller, the more a small difference decides; at 0.05 a lead of 0.1 wins with probability 0.88."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "preference.temperature", f"must be positive, not {self.temperature}")


class Sentiment(Reward):
    """Prefers the more positive of two completions."""

    def __init__(self, temperature: float) -> None:
        super().__init__(temperature)
        self._scores = TextScores.by_row(compound)

    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] compound scores in [−1, 1]; 0 for an empty completion."""
        return self._scores(prompts, completions).float()

    def expect(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Start on the scores."""
        self._scores.expect(prompts, completions)


@preference("sentiment", SentimentConfig)
def build(config: SentimentConfig) -> Preference:
    """The preference that the configuration asks for."""
    return Sentiment(config.temperature)
