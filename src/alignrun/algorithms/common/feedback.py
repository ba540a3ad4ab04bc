"""Base of the feedback models: a scorer trained on pairs by the likelihood of their labels."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignrun.algorithms.base import FeedbackTools, Loss, Measure, OfflineAlgorithm
from alignrun.algorithms.common.pairs import correct
from alignrun.config import AUTO, AdapterKind, Config, ModelSource, ReferenceKind
from alignrun.errors import InputError
from alignrun.models.cards import AdapterCard
from alignrun.types import PairBatch


class FeedbackAlgorithm(OfflineAlgorithm):
    """Trains a LoRA adapter and a scalar head on the base, not a policy."""

    kind: ClassVar[str]
    """`reward` or `preference`, as in the adapter's card."""
    tools: FeedbackTools
    config: Any
    learned = 2

    @classmethod
    def check(cls, config: Config) -> None:
        """It trains an adapter that reads texts, not a policy."""
        super().check(config)
        if config.adapter.name is AdapterKind.none:
            raise InputError(f"config: algo={cls.name} trains an adapter: use adapter=lora or adapter=qlora")
        if config.reference.name is ReferenceKind.adapter:
            raise InputError(f"config: algo={cls.name} has no reference policy: leave reference=base")
        if config.model.source is ModelSource.game:
            raise InputError(f"config: algo={cls.name} reads texts, and model=game has none: choose another model")

    def evaluators(self) -> Sequence[Measure]:
        """None: there is no policy to evaluate."""
        return []

    @classmethod
    def card(cls, config: Config) -> AdapterCard:
        """The card written next to the adapter, without the fingerprint of the base."""
        # What `auto` stood for in this run's memory says nothing of a judge's.
        model = replace(config.model, gradient_checkpointing=AUTO, cuda_graphs=AUTO)
        return AdapterCard(
            kind=cls.kind,
            base="",
            template=cls.template(config.algo),
            model=asdict(model),
            seed=config.seed,
            adapter=config.adapter.name.value,
        )

    @classmethod
    def template(cls, config: Any) -> str:
        """The template that presents a prompt and its completions to the model."""
        return str(config.template)

    @classmethod
    def embedding_size(cls, config: Any) -> int | None:
        """M, the size of the embedding; None for a scalar."""
        return None

    @abstractmethod
    def logits(self, scores: Tensor) -> Tensor:
        """[B] log-odds of chosen ≻ rejected, from the two scores of each pair, [B, 2] or [B, 2, M]."""

    @abstractmethod
    def objective(self, scores: Tensor, labels: Tensor) -> Tensor:
        """[B] the loss of each pair."""

    def scores(self, batch: PairBatch) -> Tensor:
        """[B, K] or [B, K, M] the scores of each pair's K completions."""
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
