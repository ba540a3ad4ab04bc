"""GRPO: clipped steps with the group mean of a prompt as the baseline (Shao et al., arXiv 2402.03300)."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from alignrun.algorithms.base import Loss, algorithm
from alignrun.algorithms.common.minibatches import MinibatchAlgorithm
from alignrun.algorithms.common.rewards import RewardAlgorithm, RewardConfig
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.schedules import check_minibatches
from alignrun.config import require, schema
from alignrun.objectives.divergence import kl_k2, kl_k3
from alignrun.objectives.ppo import clipped_policy_loss
from alignrun.types import Completions, PromptBatch, Role


class KLEstimator(str, Enum):
    """The KL estimator that the loss differentiates."""

    k3 = "k3"
    """The paper's, per token; given the prefix, its gradient is that of the reverse divergence KL(μ‖π)."""
    k2 = "k2"
    """½Δ² of a completion's total log ratio Δ: on-policy, its gradient is that of KL(π‖μ)."""


@schema
class GRPOConfig(RewardConfig):
    """Normalisation of the group, and the updates per rollout."""

    name: str = "grpo"
    scale_by_std: bool = True
    """Divide advantages by the standard deviation of their group, as in the paper; prompts then weigh equally."""
    length_norm: bool = True
    """Average over the tokens of each completion, as in the paper; false sums over them."""
    kl_estimator: KLEstimator = KLEstimator.k3
    clip: float = 0.2
    """ε: the ratio π/π_old has no gradient beyond 1 ± ε."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser updates per pass over the rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.samples_per_prompt >= 2, "algo.samples_per_prompt", "must be at least 2, to be a group")
        require(self.clip > 0, "algo.clip", f"must be positive, not {self.clip}")
        check_minibatches(self.epochs, self.minibatches)


@dataclass(frozen=True, slots=True)
class Group:
    """A frozen rollout: K completions for each of B prompts."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    rewards: Tensor
    """[B, K]"""
    advantages: Tensor
    """[B, K]"""
    log_probs: Tensor
    """[B, K, T] log π_old"""
    reference: Tensor
    """[B, K, T] log μ"""


@algorithm("grpo", GRPOConfig)
class GRPO(MinibatchAlgorithm, RewardAlgorithm):
    """−min(ρA, clip(ρ, 1−ε, 1+ε)A) + τ KL,  A = (r − mean r)/std r in the group of a prompt,  ρ = π/π_old by token.

    The penalty is part of the loss, not of the reward. As in the paper it is k3 = e^(−Δ) − 1 + Δ with Δ = log π/μ per
    token, whose gradient is not that of KL(π‖μ); `kl_estimator=k2`, over whole completions, has that gradient. Without
    the division by std r, A is r minus the mean of the *other* rewards: otherwise rewards would shrink by 1 − 1/K and
    the penalty would not. With the division by the standard deviation or the length, the objective is no longer r − τKL
    and the optimum is not that of RLHF. If a rollout server drew y, the surrogate of a token is weighted with
    min(π_old/π_server, `generation.server_weight_cap`).
    """

    config: GRPOConfig

    @torch.no_grad()
    def _frozen(self, prompts: PromptBatch, step: int) -> Group:
        drawn = self.draw(prompts, step)
        log_probs, reference = self.token_scores(drawn).unbind(1)
        rewards = drawn.rewards - drawn.penalties
        advantages = rewards - rewards.mean(1, keepdim=True)
        if self.config.scale_by_std:
            advantages = advantages / (rewards.std(1, keepdim=True) + 1e-4)
        else:
            count = rewards.shape[1]
            advantages = advantages * count / (count - 1)
        return Group(prompts, drawn.completions, drawn.rewards, advantages, log_probs, reference)

    def loss(self, batch: Group) -> Loss:
        """The clipped surrogate and the penalty, summed over the sequences of the micro-batch."""
        policy, completions = self.tools.policy, batch.completions.flat()
        mask = completions.mask
        old, reference = (part.flatten(0, 1) for part in (batch.log_probs, batch.reference))
        log_probs = policy.log_probs(Role.policy, batch.prompts, completions, self.temperature)
        log_ratio = log_probs - reference
        moved = (log_probs - old) * mask
        surrogate = clipped_policy_loss(moved, batch.advantages.flatten()[:, None], self.config.clip)
        surrogate = surrogate * self.correction.by_token(completions, old)
        if self.config.kl_estimator is KLEstimator.k3:
            penalty = torch.where(mask, kl_k3(log_ratio), 0.0).sum(1)
        else:
            penalty = kl_k2(torch.where(mask, log_ratio, 0.0).sum(1))
        lengths = mask.sum(1)
        per_sequence = torch.where(mask, surrogate, 0.0).sum(1) + self.config.kl_tau * penalty
        if self.config.length_norm:
            per_sequence = per_sequence / lengths
        clipped = ((moved.detach().exp() - 1).abs() > self.config.clip) & mask
        return Loss(
            total=per_sequence.sum(),
            targets=len(mask),
            metrics={
                "reward": batch.rewards.sum(),
                "clip_fraction": (clipped.sum(1) / lengths).sum(),
                **rollout_metrics(policy, completions, old, old - reference),
            },
            tokens=lengths.sum(),
        )
