"""Policy gradient of a regularised preference game against any opponent (Munos et al., arXiv 2312.00886)."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from alignrun.algorithms.base import Loss
from alignrun.algorithms.common.online import OnlineAlgorithm
from alignrun.algorithms.common.opponents import pairs_against, pairs_apart
from alignrun.algorithms.common.paired import always_paired
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.schedules import check_opponents
from alignrun.config import Config, require, schema
from alignrun.generation.streams import Source, Stream
from alignrun.objectives.nash import policy_gradient_loss, suffix_advantages
from alignrun.types import Completions, PromptBatch, Role


@schema
class GameGradientConfig:
    """Settings of every game gradient."""

    kl_tau: float = 0.02
    """τ, the weight of KL(π‖μ) against a win rate in [0, 1]."""
    samples_per_prompt: int = 8
    """Completions per prompt and side."""
    opponents_per_sample: int | None = 2
    """Opponents that each is judged against, drawn if every pair is a question to the preference; null is all."""

    def __post_init__(self) -> None:
        require(self.kl_tau >= 0, "algo.kl_tau", f"must not be negative, not {self.kl_tau}")
        require(self.samples_per_prompt >= 1, "algo.samples_per_prompt", "must be at least 1")
        check_opponents(self.opponents_per_sample)


@dataclass(frozen=True, slots=True)
class Judged:
    """K completions of the policy for each of B prompts, and the win rate of each against the opponent's."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    preference: Tensor
    """[B, K] P(y ≻ y' | x), averaged over the opponent's completions that y is judged against."""
    log_ratio: Tensor | None = None
    """[B, K, T] log π/μ of y, if it is known from verifying drafts."""


class GameGradient(OnlineAlgorithm):
    """Policy gradient of P(π ≻ π') − τ KL(π‖μ) with the opponent π' held fixed (eqs. 13-14).

    y ~ π,  y' ~ π'
    ∇ = E[Σ_n ∇log π(y_n) · (P(y ≻ y' | x) − ½ − τ Σ_{m≥n} log π(y_m)/μ(y_m))]

    The gradient flows through y alone. The loss is averaged over sequences, not tokens. With several samples per side,
    P(y ≻ y') is averaged over several y' of the prompt: the same expectation with less variance. The prompt is encoded
    once for all of them. If a rollout server drew y, the gradient of a completion is weighted with min(Π_n π/π_server,
    `generation.server_weight_cap`).
    """

    config: GameGradientConfig

    @classmethod
    @abstractmethod
    def opponent_at(cls, config: Config, step: int) -> Source:
        """The opponent π' at a step."""

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """y ~ π to learn from, and as many y' ~ π'."""
        samples = config.algo.samples_per_prompt
        opponents = Stream(cls.opponent_at(config, step), samples, drafted=True)
        return Stream(Role.policy, samples, learned=samples), opponents

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Each completion of the policy against some of the opponent's, but not the one that it drafted."""
        samples = config.algo.samples_per_prompt
        if all(always_paired(theirs, config.generation) for _, theirs in cls.declared(config)):
            return pairs_apart(samples, opponents)
        return pairs_against(samples, samples, opponents)

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Judged]:
        """Sample both sides, judge them, and yield one batch."""
        sides = self.rollouts.opposed(prompts, self.streams(self.tools.config, step), step)
        apart = sides.accepted is not None
        preference = self.rollouts.preference(prompts, sides.ours, sides.theirs, step, apart=apart)
        yield Judged(prompts, sides.ours, preference, sides.log_ratio)

    def loss(self, batch: Judged) -> Loss:
        """The surrogate −Σ log π(y_n) · A_n over the N = B·K sequences, those of a prompt in consecutive rows."""
        policy, temperature = self.tools.policy, self.tools.config.generation.temperature
        completions = batch.completions.flat()
        mask, preference = completions.mask, batch.preference.flatten()
        if batch.log_ratio is None:
            reference = policy.log_probs(Role.reference, batch.prompts, completions, temperature)
        log_probs = policy.log_probs(Role.policy, batch.prompts, completions, temperature)
        # From one read under both if it was verified: its rounding cancels, that of two passes would not.
        log_ratio = log_probs.detach() - reference if batch.log_ratio is None else batch.log_ratio.flatten(0, 1)
        penalty = self.penalty(batch.prompts, completions, log_probs.detach(), log_ratio)
        advantages = suffix_advantages(preference, penalty, mask) * self.correction.by_sequence(completions, log_probs)
        return Loss(
            total=policy_gradient_loss(log_probs, advantages, mask),
            targets=len(mask),
            metrics={"win_rate": preference.sum(), **rollout_metrics(policy, completions, log_probs, log_ratio)},
            tokens=mask.sum(),
        )

    def penalty(self, prompts: PromptBatch, completions: Completions, log_probs: Tensor, log_ratio: Tensor) -> Tensor:
        """[N, T] the penalty of each token: τ log π/μ, from log π and log π/μ [N, T]."""
        return self.config.kl_tau * log_ratio
