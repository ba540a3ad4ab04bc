"""StackelbergGDA: a leader, and a follower that improves its answers, in one set of weights (arXiv 2512.16626)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from alignrun.algorithms.base import Loss, algorithm
from alignrun.algorithms.common.conversations import (
    ConversationAlgorithm,
    Conversations,
    joined,
    planned_tokens,
)
from alignrun.algorithms.common.mismatch import mismatch_metrics
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.stacking import concatenate
from alignrun.config import Config, require, schema
from alignrun.data.follow_up import FollowUps
from alignrun.objectives.nash import policy_gradient_loss, suffix_advantages
from alignrun.types import PromptBatch, Role, as_prompt


@schema
class StackelbergConfig:
    """What the follower is asked, and how both are weighed."""

    name: str = "stackelberg"
    kl_tau: float = 0.02
    """τ, the weight of the leader's KL(π‖μ) against a win rate in [0, 1] (0.001 in the paper)."""
    follower_kl_tau: float | None = None
    """The weight of the follower's KL to the reference with the same prompt; null is kl_tau."""
    follower_weight: float = 5.0
    """κ, the weight of the follower's loss: 5 in the paper, above 1 so that it follows faster than it is led."""
    follower_prompt: str = "Improve the previous answer. Phrase it as if it was the original response."
    """What the user says after the leader's answer; the follower answers it."""
    samples_per_prompt: int = 4
    """Answers of the leader per prompt, each with one of the follower."""
    follower_kl_for_leader: bool = True
    """Add the follower's penalty to the leader's reward, as the objective does; the published code leaves it out."""

    def __post_init__(self) -> None:
        require(self.kl_tau >= 0, "algo.kl_tau", f"must not be negative, not {self.kl_tau}")
        other = self.follower_kl_tau
        require(other is None or other >= 0, "algo.follower_kl_tau", f"must not be negative, not {other}")
        require(self.follower_weight > 0, "algo.follower_weight", f"must be positive, not {self.follower_weight}")
        require(bool(self.follower_prompt.strip()), "algo.follower_prompt", "must ask for something")
        require(self.samples_per_prompt >= 1, "algo.samples_per_prompt", "must be at least 1")


@dataclass(frozen=True, slots=True)
class Led:
    """K answers of the leader for each of B prompts, the follower's to each, and what the preference said."""

    said: Conversations
    """Of two turns: the leader's, and the follower's."""
    preference: Tensor
    """[B, K] P(y ≻ y' | x) of the leader's y and the follower's y'."""


@algorithm("stackelberg", StackelbergConfig)
class Stackelberg(ConversationAlgorithm):
    """max_π min_ω E[P(y ≻ y' | x) + τ_F log ω(y'|x, y)/μ(y'|x, y)] − τ KL(π‖μ),  y ~ π(·|x),  y' ~ ω(·|x, y).

    The follower ω is the policy itself, asked to improve y: its prompt is the conversation with y and the request. Both
    take policy-gradient steps against each other, the follower with weight κ:

    ∇ = E[Σ_n ∇log π(y_n) · (P + τ_F log ω/μ − ½ − τ Σ_{m≥n} log π(y_m)/μ(y_m))]
      + κ E[Σ_n ∇log ω(y'_n) · (½ − P − τ_F Σ_{m≥n} log ω(y'_m)/μ(y'_m))]

    They stop at ω ∝ μ(·|x, y) exp(−P(y ≻ ·)/τ_F) and π ∝ μ exp(V/τ), V(y) what y keeps against ω. The leader is thus a
    cautious policy rather than an equilibrium, and the follower is for inference: ask it to improve an answer, its own
    or another model's. The metrics without a name are the leader's, as is the KL that `train.max_kl` limits. If a
    rollout server drew them, both gradients are weighted with min(Π_n π/π_server · Π_n ω/ω_server,
    `generation.server_weight_cap`).
    """

    config: StackelbergConfig

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Each answer of the leader and the follower's to it."""
        return int(config.algo.samples_per_prompt)

    @classmethod
    def later_turns(cls, config: Config) -> tuple[int, int]:
        """The follower's, whose prompt is longer by an answer and the request."""
        return 1, config.generation.max_new_tokens + planned_tokens(config.algo.follower_prompt)

    @classmethod
    def added_tokens(cls, config: StackelbergConfig, follow_ups: FollowUps, max_new_tokens: int) -> int:
        """The leader's answer, and the request."""
        return max_new_tokens + follow_ups.added(config.follower_prompt)

    @property
    def follower_kl_tau(self) -> float:
        """τ_F."""
        own = self.config.follower_kl_tau
        return self.config.kl_tau if own is None else own

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Led]:
        """The leader's answers, the follower's to each, and one batch of both."""
        (leading,) = self.rollouts.sample(prompts, self.streams(self.tools.config, step), step)
        answers = self.rollouts.texts(leading)
        asked = [
            self.follow_ups.after(as_prompt(prompts.texts[row]), answers[place][row], self.config.follower_prompt)
            for row, place in product(range(len(prompts)), range(len(answers)))
        ]
        batch = self.later_prompts(asked)
        following, improved = self.say(Role.policy, batch, step, purpose=1)
        said = joined(prompts, leading, [(batch, following)], self.tools.policy.tokenizer.pad_token_id)
        theirs = [improved[place :: len(answers)] for place in range(len(answers))]
        yield Led(said, self.rollouts.matched_texts(prompts, answers, theirs))

    def loss(self, batch: Led) -> Loss:
        """Both surrogates, summed over the B·K answers of the leader and those of the follower."""
        policy, config = self.tools.policy, self.config
        won, tau = batch.preference.flatten(), self.follower_kl_tau
        (leading, following), scores = zip(*batch.said.turns(), strict=True), []
        for prompts, completions in zip(leading, following, strict=True):
            reference, log_probs = (
                policy.log_probs(role, prompts, completions, self.temperature) for role in (Role.reference, Role.policy)
            )
            scores.append((completions, log_probs, log_probs.detach() - reference))
        (ours, ours_log, ours_ratio), (theirs, theirs_log, theirs_ratio) = scores
        kept = won + tau * theirs_ratio.sum(1) if config.follower_kl_for_leader else won
        led = suffix_advantages(kept, config.kl_tau * ours_ratio, ours.mask)
        followed = suffix_advantages(1 - won, tau * theirs_ratio, theirs.mask)
        # The two answers are one sample: what either gains depends on both.
        both, both_log = concatenate([ours, theirs], 1), torch.cat([ours_log, theirs_log], 1)
        weights = self.correction.by_sequence(both, both_log)
        total = policy_gradient_loss(ours_log, led * weights, ours.mask)
        total = total + config.follower_weight * policy_gradient_loss(theirs_log, followed * weights, theirs.mask)
        return Loss(
            total=total,
            targets=len(won),
            metrics={
                "win_rate": won.sum(),
                **rollout_metrics(policy, ours, ours_log, ours_ratio),
                **mismatch_metrics(both, both_log.detach()),
                "follower_kl": theirs_ratio.sum(),
                "follower_length": theirs.mask.sum(),
            },
            tokens=ours.mask.sum() + theirs.mask.sum(),
        )
