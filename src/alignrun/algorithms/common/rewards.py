"""The scalar reward of a completion, for algorithms that know no opponents."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from alignrun.algorithms.base import Algorithm, Tools
from alignrun.algorithms.common.batches import shared
from alignrun.algorithms.common.rollout import Rollouts, decode_texts, stack
from alignrun.algorithms.common.workload import Workload
from alignrun.config import require, schema
from alignrun.errors import InputError
from alignrun.models.policy import Role
from alignrun.preferences.base import Reward
from alignrun.types import Completions, PromptBatch


class RewardKind(str, Enum):
    """Where the scalar comes from."""

    auto = "auto"
    """The preference's own reward where it has one, otherwise the win rate."""
    scalar = "scalar"
    """The reward of a Bradley-Terry preference, in log-odds: P(y ≻ y') = σ(r − r')."""
    win_rate = "win_rate"
    """P(y ≻ μ | x), the mean over completions of the reference: what a scalar can say of any preference."""


@schema
class RewardConfig:
    """What every algorithm that maximises a reward can be told."""

    kl_tau: float = 0.05
    """τ, the weight of KL(π‖μ) against the reward."""
    samples_per_prompt: int = 4
    reward: RewardKind = RewardKind.auto
    reference_samples: int = 4
    """Completions of the reference that a win rate is measured against, for every prompt."""
    missing_eos_penalty: float = 0.0
    """Taken from the reward of a completion that does not end, from PPO's after it has been normalised; 1 is common
    where answers should fit in the limit."""

    def __post_init__(self) -> None:
        require(self.kl_tau >= 0, "algo.kl_tau", f"must not be negative, not {self.kl_tau}")
        require(self.samples_per_prompt >= 1, "algo.samples_per_prompt", "must be at least 1")
        require(self.reference_samples >= 1, "algo.reference_samples", "must be at least 1")
        require(self.missing_eos_penalty >= 0, "algo.missing_eos_penalty", "must not be negative")


@dataclass(frozen=True, slots=True)
class Rewarded:
    """K completions for each of B prompts, and their rewards."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    rewards: Tensor
    """[B, K] as the preference gives them."""
    penalties: Tensor
    """[B, K] what is taken from them where a completion does not end."""


class Rewards:
    """Draws completions and scores them by a scalar. Raises InputError where a preference has none and must."""

    def __init__(self, config: RewardConfig, tools: Tools) -> None:
        self._config, self._policy, self._preference = config, tools.policy, tools.preference
        self._rollouts = Rollouts(tools)
        scored = isinstance(tools.preference, Reward)
        if config.reward is RewardKind.scalar and not scored:
            raise InputError(
                f"config: algo.reward=scalar: preference={tools.config.preference.name} compares pairs and has no "
                "reward of one completion: use algo.reward=win_rate"
            )
        self.by_win_rate = config.reward is RewardKind.win_rate or not scored

    @property
    def note(self) -> str:
        """What the reward is, for the user."""
        if self.by_win_rate:
            return f"reward: the win rate against {self._config.reference_samples} completions of the reference"
        return "reward: the preference's own, in log-odds"

    def draw(self, prompts: PromptBatch, step: int, *, purpose: int = 0, own: bool = True) -> Rewarded:
        """K completions of every prompt, from the policy or else from the reference, with their rewards."""
        count = self._config.samples_per_prompt
        opponents = self._config.reference_samples if self.by_win_rate else 0
        betas = [0.0 if own else 1.0] * count + [1.0] * opponents
        streams = self._rollouts.sample(prompts, betas, step, purpose=purpose)
        ours, theirs = streams[:count], streams[count:]
        rewards = self._rollouts.preference(prompts, ours, theirs) if theirs else self._scalar(prompts, ours)
        completions = stack(ours)
        ended = self._policy.ends(completions.flat()).reshape(rewards.shape)
        return Rewarded(prompts, completions, rewards, self._config.missing_eos_penalty * ~ended)

    def _scalar(self, prompts: PromptBatch, streams: Sequence[Completions]) -> Tensor:
        """[B, K] r(x, y)/temperature, whose differences are the log-odds of the preference."""
        preference = self._preference
        assert isinstance(preference, Reward)
        texts = [text for stream in streams for text in decode_texts(self._policy, stream)]
        rewards = preference.log_odds(prompts.texts * len(streams), texts)
        return rewards.reshape(len(streams), len(prompts)).T.to(self._policy.device, torch.float32)


class RewardAlgorithm(Algorithm):
    """An algorithm that maximises a scalar reward."""

    config: Any
    tools: Tools

    def __init__(self, config: Any, tools: Tools) -> None:
        super().__init__(config, tools)
        self.rewards = Rewards(config, tools)
        self.policy_alone = not self.rewards.by_win_rate
        self.temperature = tools.config.generation.temperature

    @classmethod
    def workload(cls, config: Any) -> Workload:
        """K samples of the policy, and those of the reference that a win rate is measured against."""
        samples, scalar = config.samples_per_prompt, config.reward is RewardKind.scalar
        opponents = 0 if scalar else config.reference_samples
        return Workload(learned=samples, drawn=(0.0,) * samples + (1.0,) * opponents)

    def token_scores(self, drawn: Rewarded) -> Tensor:
        """[B, S, K, T] `_token_scores` of what was drawn, by micro-batches as in training."""
        return shared(drawn, self._token_scores, self.tools.config.train.micro_batch_size)

    def _token_scores(self, drawn: Rewarded) -> Tensor:
        """[B, 2, K, T] log π and log μ at every token of completions that were drawn."""
        completions, shape = drawn.completions.flat(), drawn.completions.mask.shape
        log_probs = [
            self.tools.policy.log_probs(role, drawn.prompts, completions, self.temperature).reshape(shape)
            for role in (Role.policy, Role.reference)
        ]
        return torch.stack(log_probs, 1)

    def notes(self) -> Sequence[str]:
        """Where the reward comes from."""
        return [*super().notes(), self.rewards.note]
