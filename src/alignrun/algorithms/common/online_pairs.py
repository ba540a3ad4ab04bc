"""Base of the algorithms that learn from pairs of their own samples; they differ in the sampler and the loss."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from alignrun.algorithms.base import Loss, Tools
from alignrun.algorithms.common.online import OnlineAlgorithm
from alignrun.algorithms.common.opponents import Comparisons, pairs_among
from alignrun.algorithms.common.pairs import correct
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.schedules import check_opponents
from alignrun.config import Config, require, schema
from alignrun.generation.streams import Source, Stream
from alignrun.types import Completions, PromptBatch, Role, map_parts


class Pairing(str, Enum):
    """Which pairs of a prompt's completions to learn from."""

    all = "all"
    """All pairs, or all that `opponents_per_sample` draws: the expectation in the theory, without bias."""
    best_worst = "best_worst"
    """The completions with the highest and the lowest win rate over all pairs: larger margins, but biased."""


@schema
class OnlinePairsConfig:
    """Regularisation towards μ, and the pairs to form."""

    kl_tau: float = 0.1
    """τ, the weight of KL(π‖μ)."""
    samples_per_prompt: int = 4
    """Completions drawn per prompt."""
    opponents_per_sample: int | None = 2
    """Pairs per completion with pairing=all, drawn if every pair is a question to the preference; null is all."""
    pairing: Pairing = Pairing.all
    least_samples: ClassVar[int] = 2
    """The fewest completions of a prompt that form pairs."""
    unregularised: ClassVar[bool] = False
    """Whether τ may be 0."""

    def __post_init__(self) -> None:
        require(
            self.kl_tau > 0 or (self.unregularised and self.kl_tau == 0),
            "algo.kl_tau",
            f"must {'not be negative' if self.unregularised else 'be positive'}, not {self.kl_tau}",
        )
        least = self.least_samples
        require(self.samples_per_prompt >= least, "algo.samples_per_prompt", f"must be at least {least}, to form pairs")
        check_opponents(self.opponents_per_sample)


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """K completions for each of B prompts, and M pairs of them."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    first: Tensor
    """[B, M] the index of y among the K."""
    second: Tensor
    """[B, M] the index of y'."""
    labels: Tensor
    """[B, M] P(y ≻ y' | x)."""
    kept: Tensor | None = None
    """[B, M] bool: the pairs that are learned from; None is all."""


class OnlinePairs(OnlineAlgorithm):
    """E[f(h, p)] over pairs y, y' of samples, with h = log π(y)/μ(y) − log π(y')/μ(y') and p = P(y ≻ y' | x).

    The label is the probability itself rather than a draw from it: the same expectation with less variance. Samples
    are held fixed, so no gradient flows through the sampling. Log ratios are summed over tokens, as the theory
    requires. The loss is averaged over pairs.
    """

    config: OnlinePairsConfig

    def __init__(self, config: OnlinePairsConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self.temperature = tools.config.generation.temperature

    @classmethod
    def source_at(cls, config: Config, step: int) -> Source:
        """The sampler at a step: by default, the policy."""
        return Role.policy

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """K completions, all of which are learned from."""
        samples = config.algo.samples_per_prompt
        return (Stream(cls.source_at(config, step), samples, learned=samples),)

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Pairs of the completions; all of them with pairing=best_worst."""
        every = config.algo.pairing is Pairing.best_worst
        return pairs_among(config.algo.samples_per_prompt, None if every else opponents)

    @abstractmethod
    def objective(self, margins: Tensor, labels: Tensor) -> Tensor:
        """[N] the loss of each pair, from its margin h [N] and label [N]."""

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[JudgedPairs]:
        """One batch of pairs."""
        (completions,) = self.rollouts.sample(prompts, self.streams(self.tools.config, step), step)
        every = self.config.pairing is Pairing.best_worst
        judged = self.rollouts.among(prompts, completions, step, every=every)
        yield judged_pairs(prompts, completions, judged, self.config.pairing)

    def log_ratios(self, batch: JudgedPairs, log_probs: Tensor, reference: Tensor) -> Tensor:
        """[N, T] the log ratios of the margin, log π/μ, from log-probabilities [N, T] of all N = B·K completions."""
        return log_probs - reference

    def bonus(self, batch: JudgedPairs, log_probs: Tensor) -> Tensor | float:
        """A term added to the sum of the losses, from log π(y) [B, K]."""
        return 0.0

    def loss(self, batch: JudgedPairs) -> Loss:
        """The objective summed over the pairs of the micro-batch."""
        policy, completions, shape = self.tools.policy, batch.completions.flat(), batch.completions.mask.shape
        reference = policy.log_probs(Role.reference, batch.prompts, completions, self.temperature)
        log_probs = policy.log_probs(Role.policy, batch.prompts, completions, self.temperature)
        ratios = self.log_ratios(batch, log_probs, reference).sum(1).reshape(shape[:2])
        margins = ratios.gather(1, batch.first) - ratios.gather(1, batch.second)
        # With several samplers, the policy's own completions come first.
        own = slice(None), slice(self.config.samples_per_prompt)
        watched = map_parts(batch.completions, lambda part: None if part is None else part[own]).flat()
        ours, theirs = (values.reshape(shape)[own].flatten(0, 1) for values in (log_probs, log_probs - reference))
        # Metrics are divided by the number of pairs, but these are means over completions.
        weight = batch.labels.numel() / len(watched.tokens)
        losses = self.objective(margins.flatten(), batch.labels.flatten())
        kept = {}
        if batch.kept is not None:  # still divided by all pairs, of which there is always one
            losses = torch.where(batch.kept.flatten(), losses, 0.0)
            kept = {"kept": batch.kept.sum()}
        return Loss(
            total=losses.sum() + self.bonus(batch, log_probs.sum(1).reshape(shape[:2])),
            targets=batch.labels.numel(),
            metrics={
                **kept,
                "accuracy": correct(margins.detach(), batch.labels).sum(),
                "margin": (margins.detach() * (batch.labels - 0.5).sign()).sum(),
                **{name: value * weight for name, value in rollout_metrics(policy, watched, ours, theirs).items()},
            },
            tokens=completions.mask.sum(),
        )


def judged_pairs(
    prompts: PromptBatch, completions: Completions, judged: Comparisons, pairing: Pairing = Pairing.all
) -> JudgedPairs:
    """The pairs of K completions [B, K, T] to learn from: all judged pairs, or the best and the worst."""
    if pairing is Pairing.all:
        return JudgedPairs(prompts, completions, judged.first, judged.second, judged.labels)
    table, _ = judged.table(completions.tokens.shape[1])
    # The ½ on the diagonal does not change the order; even if all are equal, first and last differ.
    order = table.sum(2).argsort(dim=1, stable=True)
    first, second = order[:, -1:], order[:, :1]
    rows = torch.arange(len(table), device=table.device)[:, None]
    return JudgedPairs(prompts, completions, first, second, table[rows, first, second])
