"""A trained reward model as a preference: preference.path=RUN of algo=reward_model."""

from collections.abc import Sequence

from torch import Tensor

from alignrun.config import require, schema
from alignrun.models.backbone import Backbone
from alignrun.preferences.base import Preference, Reward, preference
from alignrun.preferences.feedback_model import TextScorer, find_card, load_feedback_model


@schema
class BradleyTerryConfig:
    """The run, and the temperature of its preferences."""

    name: str = "bradley_terry"
    path: str | None = None
    """A finished run of algo=reward_model, or its adapter folder."""
    temperature: float = 1.0
    """P = σ((r − r') / temperature); 1 is what was trained."""
    batch_size: int = 32
    """The batch size, in texts."""

    def __post_init__(self) -> None:
        require(bool(self.path), "preference.path", "is missing: name a finished run of algo=reward_model")
        require(self.temperature > 0, "preference.temperature", f"must be positive, not {self.temperature}")
        require(self.batch_size >= 1, "preference.batch_size", "must be at least 1")


class BradleyTerry(Reward):
    """σ(r(x, y) − r(x, y')) with a learned r."""

    def __init__(self, scorer: TextScorer, temperature: float) -> None:
        super().__init__(temperature)
        self._scorer = scorer

    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] r(x, y)."""
        return self._scorer(prompts, [(text,) for text in completions])


@preference(
    "bradley_terry", BradleyTerryConfig, feedback="reward", check=lambda c: find_card(c.path, "reward"), on_base=True
)
def build(config: BradleyTerryConfig, backbone: Backbone | None) -> Preference:
    """The preference that the configuration asks for."""
    return BradleyTerry(
        load_feedback_model(str(config.path), "reward", config.batch_size, backbone), config.temperature
    )
