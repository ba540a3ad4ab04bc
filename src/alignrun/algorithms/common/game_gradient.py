"""The policy gradient of a regularised preference game, whoever the opponent is (Munos et al., arXiv 2312.00886)."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from alignrun.algorithms.base import Algorithm, Loss, Tools
from alignrun.algorithms.common.rollout import Rollouts, stack
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.workload import Workload
from alignrun.config import require, schema
from alignrun.models.policy import Role
from alignrun.objectives.nash import nash_md_advantages, policy_gradient_loss
from alignrun.types import Completions, PromptBatch


@schema
class GameGradientConfig:
    """What every such algorithm can be told."""

    kl_tau: float = 0.02
    """τ, the weight of KL(π‖μ) against a win rate in [0, 1]."""
    samples_per_prompt: int = 8
    """Completions drawn from each side for every prompt; each is judged against all of the opponent's."""

    def __post_init__(self) -> None:
        require(self.kl_tau >= 0, "algo.kl_tau", f"must not be negative, not {self.kl_tau}")
        require(self.samples_per_prompt >= 1, "algo.samples_per_prompt", "must be at least 1")


@dataclass(frozen=True, slots=True)
class Judged:
    """K completions of the policy for each of B prompts, and how often each is preferred to its opponent's."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    preference: Tensor
    """[B, K] P(y ≻ y' | x), averaged over the opponent's completions of the same prompt."""


class GameGradient(Algorithm):
    """Policy gradient of P(π ≻ π') − τ KL(π‖μ) with the opponent π' held fixed (eqs. 13-14).

    y ~ π,  y' ~ π'
    ∇ = E[Σ_n ∇log π(y_n) · (P(y ≻ y' | x) − ½ − τ Σ_{m≥n} log π(y_m)/μ(y_m))]

    The gradient goes through y alone. The loss is averaged over sequences, not over tokens. With several samples of
    each side, P(y ≻ y') is averaged over all y' of the prompt: the same expectation with less variance, and the
    prompt is read once for all of them.
    """

    config: GameGradientConfig
    tools: Tools

    def __init__(self, config: GameGradientConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self.rollouts = Rollouts(tools)

    @classmethod
    def workload(cls, config: Any) -> Workload:
        """K samples of the policy, which are learned from, and as many of an opponent that is the policy itself."""
        return Workload.against(config.samples_per_prompt, 0.0)

    @abstractmethod
    def draw(self, prompts: PromptBatch, step: int) -> tuple[Sequence[Completions], Sequence[Completions]]:
        """`samples_per_prompt` completions of every prompt from the policy, and as many from the opponent."""

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Judged]:
        """One batch: both sides drawn together, and judged."""
        ours, theirs = self.draw(prompts, step)
        yield Judged(prompts, stack(ours), self.rollouts.preference(prompts, ours, theirs))

    def loss(self, batch: Judged) -> Loss:
        """The surrogate −Σ log π(y_n) · score_n, summed over the sequences of the micro-batch."""
        policy, temperature = self.tools.policy, self.tools.config.generation.temperature
        completions = batch.completions.flat()
        mask, preference = completions.mask, batch.preference.flatten()
        reference = policy.log_probs(Role.reference, batch.prompts, completions, temperature)
        log_probs = policy.log_probs(Role.policy, batch.prompts, completions, temperature)
        log_ratio = log_probs.detach() - reference
        penalty = self.penalty(batch.prompts, completions, log_probs.detach(), log_ratio)
        advantages = nash_md_advantages(preference, penalty, mask, 1.0)
        return Loss(
            total=policy_gradient_loss(log_probs, advantages, mask),
            targets=len(mask),
            metrics={"win_rate": preference.sum(), **rollout_metrics(policy, completions, log_probs, log_ratio)},
            tokens=mask.sum(),
        )

    def penalty(self, prompts: PromptBatch, completions: Completions, log_probs: Tensor, log_ratio: Tensor) -> Tensor:
        """[N, T] what each token costs: τ log π/μ, from log π and log π/μ [N, T]."""
        return self.config.kl_tau * log_ratio
