"""Preference models P(y ≻ y' | x): from both completions together (arXiv 2312.00886 §3.2), or from embeddings."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.algorithms.common.rollout import step_generator
from alignrun.config import Config, FromData, require, schema
from alignrun.config.templates import split_template
from alignrun.data.encoding import Encoding
from alignrun.data.feedback_encoding import PreferenceEncoder, RewardEncoder
from alignrun.data.pairs import PairSet
from alignrun.models.cards import AdapterCard
from alignrun.objectives.preference import antisymmetric_logits, dpo_loss, preference_loss, skew_logits
from alignrun.types import Completions, Example, PairBatch


class Head(str, Enum):
    """The model's output from which P is computed."""

    pair = "pair"
    """The text with both completions: K of them cost K² passes."""
    embedding = "embedding"
    """A vector for each completion, P = σ(v(x, y)ᵀRv(x, y') / temperature) with R skew-symmetric (arXiv 2410.02197):
    K completions cost K passes, and cycles can still be expressed."""


class Orders(str, Enum):
    """The order of the two completions in training."""

    both = "both"
    """Every pair in both orders, as at query time: the model cannot learn that one position wins."""
    random = "random"
    """One order at random for each pair and step: half the work, more noise."""


@schema
class PreferenceModelConfig(FromData):
    """How a pair is presented to the model."""

    name: str = "preference_model"
    template: str = (
        "You are an expert judge. Given a request and two replies, output 1 or 2 to indicate which reply is better.\n\n"
        "Request: {prompt}\n\nReply 1: {first}\n\nReply 2: {second}\n\nBetter reply:"
    )
    """With {prompt}, {first} and {second} in this order, as one user turn if the tokenizer has a chat template."""
    orders: Orders = Orders.both
    """The order of the two completions in training (head=pair)."""
    head: Head = Head.pair
    embedding_template: str = "{prompt}\n\n{completion}"
    """With {prompt} and {completion}, as one user turn if the tokenizer has a chat template (head=embedding)."""
    embedding_size: int = 8
    """Even; 2 express one cycle of a prompt's completions (head=embedding)."""
    temperature: float = 0.1
    """Smaller values allow a more certain P, which lies between σ(±1 / temperature) (head=embedding)."""

    def __post_init__(self) -> None:
        split_template(self.embedding_template, ("prompt", "completion"), "algo.embedding_template")
        require(self.temperature > 0, "algo.temperature", f"must be positive, not {self.temperature}")
        even = self.embedding_size >= 2 and self.embedding_size % 2 == 0
        require(even, "algo.embedding_size", f"must be even and at least 2, not {self.embedding_size}")
        split_template(self.template, ("prompt", "first", "second"), "algo.template")


@algorithm("preference_model", PreferenceModelConfig)
class PreferenceModel(FeedbackAlgorithm):
    """−p log P − (1−p) log(1−P) with P(y ≻ y') = σ(½(z(x, y, y') − z(x, y', y))).

    Antisymmetric by construction, so that P(y ≻ y') + P(y' ≻ y) = 1 whatever z is. The paper's printed loss always has
    the winner first, and is minimised by a model that reads neither. With algo.head=embedding it is σ of a
    skew-symmetric form, which is antisymmetric by itself.
    """

    kind = "preference"
    config: PreferenceModelConfig

    @classmethod
    def dataset(cls, config: PreferenceModelConfig, examples: Sequence[Example], encoding: Encoding) -> PairSet:
        """The pairs: both orders after the prompt, or each completion by itself."""
        kind = RewardEncoder if config.head is Head.embedding else PreferenceEncoder
        encoder = kind(encoding.tokenizer, cls.template(config), encoding.rows)
        return PairSet.build(examples, encoding, encoder.encode_pair)

    @classmethod
    def card(cls, config: Config) -> AdapterCard:
        """The card's kind, `preference` or `embedding`, depends on the head."""
        card = super().card(config)
        if config.algo.head is Head.pair:
            return card
        return replace(card, kind="embedding", temperature=config.algo.temperature)

    @classmethod
    def template(cls, config: PreferenceModelConfig) -> str:
        """The template of the head."""
        return config.embedding_template if config.head is Head.embedding else config.template

    @classmethod
    def embedding_size(cls, config: PreferenceModelConfig) -> int | None:
        """2k: R rotates k planes."""
        return config.embedding_size if config.head is Head.embedding else None

    def collect(self, batch: PairBatch, step: int) -> Iterator[PairBatch]:
        """Both orders, or one of them at random with its label."""
        if self.config.orders is Orders.both or self.config.head is Head.embedding:
            yield batch
            return
        device = batch.labels.device
        generator = step_generator(device, self.tools.config.seed, step)
        order = torch.randint(2, (len(batch.labels),), generator=generator, device=device)
        rows = torch.arange(len(order), device=device)
        tokens, mask = (part[rows, order][:, None] for part in (batch.completions.tokens, batch.completions.mask))
        labels = torch.where(order == 0, batch.labels, 1 - batch.labels)
        yield replace(batch, completions=Completions(tokens, mask), labels=labels)

    def logits(self, scores: Tensor) -> Tensor:
        """½(z(x, y, y') − z(x, y', y)), or z if only one order was read; for embeddings vᵀRv' / temperature."""
        if self.config.head is Head.embedding:
            return skew_logits(*scores.unbind(1)) / self.config.temperature
        return antisymmetric_logits(scores) if scores.shape[1] == 2 else scores[:, 0]

    def objective(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of P."""
        if scores.shape[1:] == (2,):
            return preference_loss(scores, labels)
        return dpo_loss(self.logits(scores), labels, 1.0)  # the same cross-entropy, of log-odds
