"""RLOO: REINFORCE with the other samples as the baseline (Ahmadian et al., arXiv 2402.14740)."""

from collections.abc import Iterator

from alignrun.algorithms.base import Loss, algorithm
from alignrun.algorithms.common.rewards import RewardAlgorithm, RewardConfig, Rewarded
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.config import require, schema
from alignrun.objectives.nash import policy_gradient_loss
from alignrun.types import PromptBatch, Role


@schema
class RLOOConfig(RewardConfig):
    """At least two samples, which serve as baselines for each other."""

    name: str = "rloo"
    opponents_per_sample: int | None = 2
    """Completions of the reference that each is judged against, drawn if every pair is a question; null is all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.samples_per_prompt >= 2, "algo.samples_per_prompt", "must be at least 2, for a baseline")


@algorithm("rloo", RLOOConfig)
class RLOO(RewardAlgorithm):
    """R = r(x, y) − τ log π(y)/μ(y),  A_i = R_i − mean_{j≠i} R_j over the prompt,  ∇ = E[A ∇log π(y)].

    Whole completions are actions, and the log ratio k1 is part of the reward. The optimum is that of RLHF, μ exp(r/τ);
    with the win rate against μ as the reward it is the best response to μ, not the equilibrium. If a rollout server
    drew y, a completion is weighted with min(Π_n π/π_server, `generation.server_weight_cap`).
    """

    config: RLOOConfig

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Rewarded]:
        """One batch of completions with their rewards."""
        yield self.draw(prompts, step)

    def loss(self, batch: Rewarded) -> Loss:
        """The surrogate −Σ A log π(y), summed over the sequences of the micro-batch."""
        policy = self.tools.policy
        completions, count = batch.completions.flat(), self.config.samples_per_prompt
        reference, log_probs = (
            policy.log_probs(role, batch.prompts, completions, self.temperature)
            for role in (Role.reference, Role.policy)
        )
        log_ratio = log_probs.detach() - reference
        returns = batch.rewards - batch.penalties - self.config.kl_tau * log_ratio.sum(1).reshape(batch.rewards.shape)
        advantages = (returns - returns.mean(1, keepdim=True)) * count / (count - 1)
        weighted = advantages.flatten()[:, None] * self.correction.by_sequence(completions, log_probs)
        per_token = weighted.expand_as(log_probs)
        return Loss(
            total=policy_gradient_loss(log_probs, per_token, completions.mask),
            targets=len(log_probs),
            metrics={"reward": batch.rewards.sum(), **rollout_metrics(policy, completions, log_probs, log_ratio)},
            tokens=completions.mask.sum(),
        )
