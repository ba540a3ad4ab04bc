"""A trained pairwise preference model, asked in both orders: preference.path=RUN of algo=preference_model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignrun.config import require, schema
from alignrun.models.backbone import Backbone
from alignrun.objectives.preference import antisymmetric_logits
from alignrun.preferences.base import Preference, preference
from alignrun.preferences.feedback_model import TextScorer, load_feedback_model


@schema
class LearnedConfig:
    """Which run."""

    name: str = "learned"
    path: str | None = None
    """A finished run of algo=preference_model, or its adapter folder."""
    batch_size: int = 32
    """Texts read at once."""

    def __post_init__(self) -> None:
        require(bool(self.path), "preference.path", "is missing: name a finished run of algo=preference_model")
        require(self.batch_size >= 1, "preference.batch_size", "must be at least 1")


class LearnedPreference(Preference):
    """P(y ≻ y' | x) = σ(½(z(x, y, y') − z(x, y', y))), arXiv 2312.00886 §3.2 made antisymmetric."""

    def __init__(self, scorer: TextScorer) -> None:
        self._scorer = scorer

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] P(first ≻ second); both orders are read in one go."""
        forward, backward = list(zip(first, second, strict=True)), list(zip(second, first, strict=True))
        scores = self._scorer([*prompts, *prompts], [*forward, *backward])
        return torch.sigmoid(antisymmetric_logits(scores.reshape(2, -1).T))


@preference("learned", LearnedConfig, feedback="preference")
def build(config: LearnedConfig, backbone: Backbone) -> Preference:
    """The preference that the configuration asks for."""
    return LearnedPreference(load_feedback_model(str(config.path), "preference", config.batch_size, backbone))
