"""A trained pairwise preference model, asked in both orders: preference.path=RUN of algo=preference_model."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from alignrun.config import require, schema
from alignrun.errors import InputError
from alignrun.models.backbone import Backbone
from alignrun.objectives.preference import antisymmetric_logits, skew_logits
from alignrun.preferences.base import Judgment, Preference, preference
from alignrun.preferences.feedback_model import TextScorer, find_card, load_feedback_model


@schema
class LearnedConfig:
    """Which run."""

    name: str = "learned"
    path: str | None = None
    """A finished run of algo=preference_model, or its adapter folder."""
    batch_size: int = 32
    """The batch size, in texts."""

    def __post_init__(self) -> None:
        require(bool(self.path), "preference.path", "is missing: name a finished run of algo=preference_model")
        require(self.batch_size >= 1, "preference.batch_size", "must be at least 1")


class LearnedPreference(Preference):
    """P(y ≻ y' | x) = σ(½(z(x, y, y') − z(x, y', y))), arXiv 2312.00886 §3.2 made antisymmetric."""

    def __init__(self, scorer: TextScorer) -> None:
        self._scorer = scorer

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] P(first ≻ second)."""
        return self.judge(prompts, first, second).probabilities

    def judge(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Judgment:
        """Both orders are read in one batch."""
        forward, backward = list(zip(first, second, strict=True)), list(zip(second, first, strict=True))
        scores = self._scorer([*prompts, *prompts], [*forward, *backward])
        logits = scores.reshape(2, -1).T
        return Judgment.in_both_orders(torch.sigmoid(antisymmetric_logits(logits)), torch.sigmoid(logits))


class EmbeddedPreference(Preference):
    """P(y ≻ y' | x) = σ(v(x, y)ᵀRv(x, y') / temperature), arXiv 2410.02197: each completion is read once."""

    by_pair = False

    def __init__(self, scorer: TextScorer) -> None:
        self._scorer = scorer

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] P(first ≻ second)."""
        embeddings = self._scorer([*prompts, *prompts], [(text,) for text in (*first, *second)])
        return torch.sigmoid(skew_logits(*embeddings.unflatten(0, (2, -1))) / self._scorer.card.temperature)


def reads_pairs(config: LearnedConfig) -> bool:
    """Whether the run's model reads both completions at once; assumed for a run that does not exist yet."""
    with suppress(InputError):
        return find_card(str(config.path), "preference")[1].kind != "embedding"
    return True


@preference(
    "learned",
    LearnedConfig,
    feedback="preference",
    check=lambda c: find_card(c.path, "preference"),
    on_base=True,
    by_pair=reads_pairs,
)
def build(config: LearnedConfig, backbone: Backbone | None) -> Preference:
    """The preference that the configuration asks for."""
    scorer = load_feedback_model(str(config.path), "preference", config.batch_size, backbone)
    return EmbeddedPreference(scorer) if scorer.card.kind == "embedding" else LearnedPreference(scorer)
