"""The pairwise preference model of Nash learning: P(y ≻ y' | x), conditioned on both (arXiv 2312.00886 §3.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.algorithms.common.rollout import step_generator
from alignrun.config import schema
from alignrun.config.templates import split_template
from alignrun.data import Encoding, PairSet, PreferenceEncoder
from alignrun.objectives.preference import antisymmetric_logits, dpo_loss, preference_loss
from alignrun.types import Completions, Example, PairBatch


class Orders(str, Enum):
    """In which order the two completions stand before the model while it is trained."""

    both = "both"
    """Every pair in both orders, as it will be asked: no place can be learned to win."""
    random = "random"
    """One order at random for each pair and step: half the work, more noise."""


@schema
class PreferenceModelConfig:
    """How a pair is put before the model."""

    name: str = "preference_model"
    template: str = (
        "You are an expert judge. Given a request and two replies, output 1 or 2 to indicate which reply is better.\n\n"
        "Request: {prompt}\n\nReply 1: {first}\n\nReply 2: {second}\n\nBetter reply:"
    )
    """With {prompt}, {first} and {second} in this order, as one user turn where the tokenizer has a chat template."""
    orders: Orders = Orders.both

    def __post_init__(self) -> None:
        split_template(self.template, ("prompt", "first", "second"), "algo.template")


@algorithm("preference_model", PreferenceModelConfig)
class PreferenceModel(FeedbackAlgorithm):
    """−p log P − (1−p) log(1−P) with P(y ≻ y') = σ(½(z(x, y, y') − z(x, y', y))).

    Antisymmetric by construction, so that P(y ≻ y') + P(y' ≻ y) = 1 whatever z is. The loss that the paper prints
    has the winner always in the first place, and is minimised by a model that reads neither.
    """

    kind = "preference"
    config: PreferenceModelConfig

    @classmethod
    def dataset(cls, config: PreferenceModelConfig, examples: Sequence[Example], encoding: Encoding) -> PairSet:
        """The pairs: both orders after the prompt."""
        encoder = PreferenceEncoder(encoding.tokenizer, config.template, encoding.rows)
        return PairSet.build(examples, encoding, encoder.encode_pair)

    def collect(self, batch: PairBatch, step: int) -> Iterator[PairBatch]:
        """Both orders, or one of them at random with its label."""
        if self.config.orders is Orders.both:
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
        """½(z(x, y, y') − z(x, y', y)), or z where one order was asked."""
        return antisymmetric_logits(scores) if scores.shape[1] == 2 else scores[:, 0]

    def objective(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of P."""
        if scores.shape[1] == 2:
            return preference_loss(scores, labels)
        return dpo_loss(scores[:, 0], labels, 1.0)  # the same cross-entropy, of one score as the log-odds
