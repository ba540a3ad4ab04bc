"""REBEL: policy optimisation as the regression of relative rewards (Gao et al., arXiv 2404.16767)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignrun.algorithms.base import Loss, algorithm
from alignrun.algorithms.common.minibatches import MinibatchAlgorithm
from alignrun.algorithms.common.opponents import all_among
from alignrun.algorithms.common.rewards import RewardAlgorithm, RewardConfig
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.schedules import check_minibatches
from alignrun.config import require, schema
from alignrun.objectives.nash import relative_reward_loss
from alignrun.types import Completions, PromptBatch, Role


@schema
class REBELConfig(RewardConfig):
    """The step size, and the updates per rollout."""

    name: str = "rebel"
    step_eta: float = 1.0
    """η, the step size against the reward, 1.0 in the paper's summarisation; kl_tau·step_eta must be below 1."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser updates per pass over the rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.samples_per_prompt >= 2, "algo.samples_per_prompt", "must be at least 2, to be compared")
        require(self.step_eta > 0, "algo.step_eta", f"must be positive, not {self.step_eta}")
        require(
            self.kl_tau * self.step_eta < 1,
            "algo.step_eta",
            f"times algo.kl_tau={self.kl_tau} must be below 1, and {self.step_eta} is too large: lower one of them",
        )
        check_minibatches(self.epochs, self.minibatches)


@dataclass(frozen=True, slots=True)
class Regression:
    """A frozen rollout of π_t: K completions for each of B prompts."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    rewards: Tensor
    """[B, K] as the preference gave them, for the log."""
    targets: Tensor
    """[B, K] r − τ log π_t/μ: less the penalty without an end token, and less the KL."""
    log_probs: Tensor
    """[B, K, T] log π_t"""
    reference: Tensor
    """[B, K, T] log μ"""


@algorithm("rebel", REBELConfig)
class REBEL(MinibatchAlgorithm, RewardAlgorithm):
    """(log π(y)/π_t(y) − log π(y')/π_t(y') − η[R(y) − R(y')])²/η,  y, y' ~ π_t,  R = r − τ log π_t/μ.

    It is η times the paper's loss, over all pairs of a prompt's completions. An exactly solved iteration is the step
    π ∝ μ^(ητ) π_t^(1−ητ) exp(ηr) of natural policy gradient, whose fixed point is RLHF's optimum μ exp(r/τ); with τ = 0
    nothing limits the KL. No value function, no clipping, no baseline: differences cancel it. The paper's extension to
    general preferences, r(y) − r(y') as what y and y' win against π_t, is `inpo` and `dno`.
    """

    config: REBELConfig

    @torch.no_grad()
    def _frozen(self, prompts: PromptBatch, step: int) -> Regression:
        drawn = self.draw(prompts, step)
        log_probs, reference = self.token_scores(drawn).unbind(1)
        targets = drawn.rewards - drawn.penalties - self.config.kl_tau * (log_probs - reference).sum(2)
        return Regression(prompts, drawn.completions, drawn.rewards, targets, log_probs, reference)

    def loss(self, batch: Regression) -> Loss:
        """The regression summed over the pairs of the micro-batch."""
        policy, completions, shape = self.tools.policy, batch.completions.flat(), batch.rewards.shape
        old, reference = (part.flatten(0, 1) for part in (batch.log_probs, batch.reference))
        log_probs = policy.log_probs(Role.policy, batch.prompts, completions, self.temperature)
        moved = (log_probs - old).sum(1).reshape(shape)
        first, second = all_among(shape[1]).to(moved.device)
        h, gain = (values[:, first] - values[:, second] for values in (moved, batch.targets))
        losses = relative_reward_loss(h, gain, self.config.step_eta)
        return Loss(
            total=losses.sum(),
            targets=losses.numel(),
            metrics={},
            tokens=completions.mask.sum(),
            # Metrics of the policy that drew the completions.
            per_sequence={
                "reward": batch.rewards.sum(),
                "log_ratio_old": moved.detach().sum(),
                **rollout_metrics(policy, completions, old, old - reference),
            },
            sequences=moved.numel(),
        )
