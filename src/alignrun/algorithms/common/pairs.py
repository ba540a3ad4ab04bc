"""Base of the offline algorithms on preference pairs: DPO, IPO and GPO differ in one function of the margin."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignrun.algorithms.base import Loss, Measure, OfflineAlgorithm, Tools
from alignrun.algorithms.common.reference_cache import reference_log_probs
from alignrun.config import Config, FromData, require, schema
from alignrun.data.encoding import Encoding
from alignrun.data.pairs import PairSet, encode_policy_pair
from alignrun.objectives.preference import margins, sequence_log_probs, smooth
from alignrun.types import Example, PairBatch, Role


@schema
class PairsConfig(FromData):
    """Settings shared by all algorithms on preference pairs."""

    label_smoothing: float = 0.0
    """ε: replace a label p by p(1−ε) + (1−p)ε, as if a share ε of the labels were flipped."""
    length_norm: bool = False
    """Average log ratios over tokens instead of summing them: an ablation, not covered by the theory."""
    precompute_reference: bool = False
    """Score all pairs under the reference once, before the first step, and cache the result for other runs."""

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 0.5, "algo.label_smoothing", "must lie in [0, 0.5)")


class PairsAlgorithm(OfflineAlgorithm):
    """Minimise E[f(h)] over preference pairs, h = log π(y_w)/μ(y_w) − log π(y_l)/μ(y_l).

    Nothing is sampled, so log-probabilities are at temperature 1, regardless of `generation.temperature`. Both
    completions of a pair share one encoding of the prompt. Losses are averaged over pairs.
    """

    config: Any
    learned = 2

    @classmethod
    def precomputes(cls, config: Config) -> bool:
        """With `precompute_reference`."""
        return bool(config.algo.precompute_reference)

    def evaluators(self) -> Sequence[Measure]:
        """The loss on held-out pairs, then the policy against the reference."""
        return [Measure.pairs, Measure.policy]

    @abstractmethod
    def objective(self, margin: Tensor, labels: Tensor) -> Tensor:
        """[B] the loss of each pair, from its margin h [B] and label P(chosen ≻ rejected) [B]."""

    @property
    @abstractmethod
    def reward_scale(self) -> float:
        """The factor from log π/μ to the implicit reward."""

    @classmethod
    def dataset(cls, config: Any, examples: Sequence[Example], encoding: Encoding) -> PairSet:
        """The pairs, encoded for the policy."""
        return PairSet.build(examples, encoding, encode_policy_pair(encoding))

    def __init__(self, config: Any, tools: Tools) -> None:
        super().__init__(config, tools)
        self._policy = tools.policy

    def prepare(self, data: Any) -> PairSet:
        """Add log μ of every pair if `precompute_reference` is set."""
        pairs: PairSet = data
        if not self.config.precompute_reference:
            return pairs
        size = self.tools.config.train.micro or self.tools.config.train.batch_size
        return pairs.with_reference(reference_log_probs(self._policy, pairs, size))

    def loss(self, batch: PairBatch) -> Loss:
        """The objective summed over pairs, with the usual metrics of preference optimisation."""
        policy, reference = self._log_probs(batch)
        margin = margins(policy, reference)
        rewards = self.reward_scale * (policy - reference).detach()
        chosen, rejected = rewards.unbind(1)
        return Loss(
            total=self.objective(margin, smooth(batch.labels, self.config.label_smoothing)).sum(),
            targets=len(margin),
            metrics={
                "accuracy": correct(chosen - rejected, batch.labels).sum(),
                "rewards/chosen": chosen.sum(),
                "rewards/rejected": rejected.sum(),
                "rewards/margin": (chosen - rejected).sum(),
                "logps/chosen": policy[:, 0].detach().sum(),
                "logps/rejected": policy[:, 1].detach().sum(),
            },
            tokens=batch.completions.mask.sum(),
            # The preference of the Bradley-Terry model with the policy's implicit reward.
            probabilities=torch.sigmoid(chosen - rejected),
        )

    def _log_probs(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """log π and log μ of both completions, each [B, 2]."""
        completions = batch.completions.flat()
        mask, normed = completions.mask, self.config.length_norm

        def score(role: Role) -> Tensor:
            log_probs = self._policy.log_probs(role, batch.prompts, completions)
            return sequence_log_probs(log_probs, mask, length_norm=normed).reshape(-1, 2)

        if batch.reference is None:
            reference = score(Role.reference)
        else:
            lengths = batch.completions.mask.sum(-1)
            reference = batch.reference / lengths if normed else batch.reference
        return score(Role.policy), reference


def correct(margin: Tensor, labels: Tensor) -> Tensor:
    """[B] 1 where the margin [B] agrees with the label, ½ where either is undecided, else 0."""
    return 0.5 + 0.5 * margin.sign() * (labels - 0.5).sign()
