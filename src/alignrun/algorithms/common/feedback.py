"""What the two feedback models share: a scorer trained on pairs, by the likelihood of their labels."""

from abc import abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignrun.algorithms.base import FeedbackTools, Loss, OfflineAlgorithm
from alignrun.algorithms.common.pairs import correct
from alignrun.algorithms.common.workload import Workload
from alignrun.config import Config
from alignrun.models.cards import AdapterCard
from alignrun.types import PairBatch


class FeedbackAlgorithm(OfflineAlgorithm):
    """Trains a LoRA adapter and a scalar head on the base, not a policy."""

    kind: ClassVar[str]
    """`reward` or `preference`, as the adapter's card says it."""
    tools: FeedbackTools
    config: Any

    @classmethod
    def workload(cls, config: Any) -> Workload:
        """Both completions of every pair."""
        return Workload(learned=2)

    @classmethod
    def card(cls, config: Config) -> AdapterCard:
        """What will be written beside the adapter, but for the fingerprint of its base."""
        return AdapterCard(
            kind=cls.kind,
            base="",
            template=cls.template(config.algo),
            model=asdict(config.model),
            seed=config.seed,
            adapter=config.adapter.name.value,
        )

    @classmethod
    def template(cls, config: Any) -> str:
        """How a prompt and its completions are put before the model."""
        return str(config.template)

    @classmethod
    def embedding_size(cls, config: Any) -> int | None:
        """M of the embedding that it reads off the model; None for a scalar."""
        return None

    @abstractmethod
    def logits(self, scores: Tensor) -> Tensor:
        """[B] log-odds of chosen ≻ rejected, from the two scores of each pair, [B, 2] or [B, 2, M]."""

    @abstractmethod
    def objective(self, scores: Tensor, labels: Tensor) -> Tensor:
        """[B] the loss of each pair."""

    def scores(self, batch: PairBatch) -> Tensor:
        """[B, K] or [B, K, M] the scores of the K completions that belong to each pair."""
        scores = self.tools.scorer.scores(batch.prompts, batch.completions.flat())
        return scores.reshape(len(batch.prompts), -1, *scores.shape[1:])

    def loss(self, batch: PairBatch) -> Loss:
        """The cross-entropy of the labels, summed over pairs."""
        scores = self.scores(batch)
        logits = self.logits(scores.detach())
        return Loss(
            total=self.objective(scores, batch.labels).sum(),
            targets=len(scores),
            metrics={"accuracy": correct(logits, batch.labels).sum(), "margin": logits.sum()},
            tokens=batch.completions.mask.sum(),
            probabilities=torch.sigmoid(logits),
        )
