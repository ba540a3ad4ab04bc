"""A published measure of a text as a judge, without a network: preference.measure=readability"""

from collections.abc import Sequence

from torch import Tensor

from alignrun.config import require, schema
from alignrun.errors import suggestion
from alignrun.preferences.base import Preference, Reward, preference
from alignrun.preferences.text_measures import TEXT_MEASURES, TextMeasure
from alignrun.preferences.texts import TextScores


@schema
class MeasureConfig:
    """P(y ≻ y') = σ((s(y) − s(y')) / (temperature · spread)) with s a measure of preferences/text_measures.py."""

    name: str = "measure"
    measure: str | None = None
    """sentiment, readability, diversity, relevance, formality, spokenness or brevity: the larger, the better."""
    temperature: float = 0.125
    """In typical differences (`TextMeasure.spread`): at 0.125 an eighth of one wins with probability 0.73.

    A whole one decides, and the more positive text wins as often as with `preference=sentiment`.
    """

    def __post_init__(self) -> None:
        known, name = ", ".join(TEXT_MEASURES), str(self.measure)
        require(self.measure is not None, "preference.measure", f"is missing: choose from {known}")
        require(name in TEXT_MEASURES, "preference.measure", f"has no {name}{suggestion(name, TEXT_MEASURES)}")
        require(self.temperature > 0, "preference.temperature", f"must be positive, not {self.temperature}")


class MeasureReward(Reward):
    """Prefers the completion of the higher score."""

    def __init__(self, measure: TextMeasure, temperature: float) -> None:
        super().__init__(temperature * measure.spread)
        self._scores = TextScores.by_row(measure.score)

    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] scores."""
        return self._scores(prompts, completions).float()

    def expect(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Start on the scores."""
        self._scores.expect(prompts, completions)


@preference("measure", MeasureConfig)
def build(config: MeasureConfig) -> Preference:
    """The preference that the configuration asks for."""
    return MeasureReward(TEXT_MEASURES[str(config.measure)], config.temperature)
