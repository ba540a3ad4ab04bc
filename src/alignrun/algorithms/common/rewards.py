"""The scalar reward of a completion, for algorithms without an opponent."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from alignrun.algorithms.base import Tools
from alignrun.algorithms.common.batches import shared
from alignrun.algorithms.common.online import OnlineAlgorithm
from alignrun.algorithms.common.opponents import pairs_against
from alignrun.algorithms.common.schedules import check_opponents
from alignrun.algorithms.common.scoring import token_scores
from alignrun.config import Config, require, schema
from alignrun.errors import InputError
from alignrun.generation.streams import Stream
from alignrun.preferences.base import Reward
from alignrun.types import Completions, PromptBatch, Role


class RewardKind(str, Enum):
    """The source of the scalar reward."""

    auto = "auto"
    """The preference's own reward if it has one, otherwise the win rate."""
    scalar = "scalar"
    """The reward of a Bradley-Terry preference, in log-odds: P(y ≻ y') = σ(r − r')."""
    win_rate = "win_rate"
    """P(y ≻ μ | x), the mean over completions of the reference; available for every preference."""


@schema
class RewardConfig:
    """Settings shared by all algorithms that maximise a reward."""

    kl_tau: float = 0.05
    """τ, the weight of KL(π‖μ) against the reward."""
    samples_per_prompt: int = 4
    """Completions drawn per prompt."""
    reward: RewardKind = RewardKind.auto
    reference_samples: int = 4
    """Completions of the reference per prompt, to estimate the win rate."""
    opponents_per_sample: int | None = None
    """Completions that each is judged against, drawn if every pair is a question; null is all."""
    missing_eos_penalty: float = 0.0
    """Penalty on the reward of a completion without an end token (on the normalised reward in PPO)."""

    def __post_init__(self) -> None:
        require(self.kl_tau >= 0, "algo.kl_tau", f"must not be negative, not {self.kl_tau}")
        require(self.samples_per_prompt >= 1, "algo.samples_per_prompt", "must be at least 1")
        require(self.reference_samples >= 1, "algo.reference_samples", "must be at least 1")
        check_opponents(self.opponents_per_sample)
        require(self.missing_eos_penalty >= 0, "algo.missing_eos_penalty", "must not be negative")


@dataclass(frozen=True, slots=True)
class Rewarded:
    """K completions for each of B prompts, and their rewards."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    rewards: Tensor
    """[B, K] before penalties."""
    penalties: Tensor
    """[B, K] the amount to subtract from the reward of a completion without an end token."""


class RewardAlgorithm(OnlineAlgorithm):
    """An algorithm that maximises a scalar reward. Raises InputError if the preference lacks a required reward."""

    config: Any

    def __init__(self, config: Any, tools: Tools) -> None:
        scored = isinstance(tools.preference, Reward)
        if config.reward is RewardKind.scalar and not scored:
            raise InputError(
                f"config: algo.reward=scalar: preference={tools.config.preference.name} compares pairs and has no "
                "reward of one completion: use algo.reward=win_rate"
            )
        if config.reward is RewardKind.auto:
            config = replace(config, reward=RewardKind.scalar if scored else RewardKind.win_rate)
        super().__init__(config, replace(tools, config=replace(tools.config, algo=config)))
        self.temperature = tools.config.generation.temperature

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """K completions of the policy, and completions of the reference if the reward is a win rate.

        Before the preference is loaded, `auto` is planned as the win rate, which needs more memory.
        """
        algo = config.algo
        own = Stream(Role.policy, algo.samples_per_prompt, learned=algo.samples_per_prompt)
        return (own,) if algo.reward is RewardKind.scalar else (own, Stream(Role.reference, algo.reference_samples))

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Each completion against some of the reference's, if the reward is a win rate."""
        algo = config.algo
        if algo.reward is RewardKind.scalar:
            return 0
        return pairs_against(algo.samples_per_prompt, algo.reference_samples, opponents)

    def draw(self, prompts: PromptBatch, step: int, *, purpose: int = 0, role: Role = Role.policy) -> Rewarded:
        """Sample K completions per prompt from a role, by default the policy, and reward them."""
        own, *others = self.streams(self.tools.config, step)
        streams = [replace(own, source=role), *others]
        completions, *theirs = self.rollouts.sample(prompts, streams, step, purpose=purpose)
        if theirs:
            rewards = self.rollouts.preference(prompts, completions, theirs[0], step, purpose)
        else:
            rewards = self._scalar(prompts, completions)
        ended = self.tools.policy.ends(completions.flat()).reshape(rewards.shape)
        return Rewarded(prompts, completions, rewards, self.config.missing_eos_penalty * ~ended)

    def _scalar(self, prompts: PromptBatch, completions: Completions) -> Tensor:
        """[B, K] r(x, y)/temperature; differences are the log-odds of the preference."""
        preference = self.tools.preference
        assert isinstance(preference, Reward)
        texts = self.rollouts.texts(completions)
        rewards = preference.log_odds(prompts.texts * len(texts), [text for sample in texts for text in sample])
        return rewards.reshape(len(texts), len(prompts)).T.to(self.tools.policy.device, torch.float32)

    def token_scores(self, drawn: Rewarded) -> Tensor:
        """[B, S, K, T] `_token_scores` of the completions, computed in the micro-batches of training."""
        return shared(drawn, self._token_scores, self.rollouts.scoring)

    def _token_scores(self, drawn: Rewarded) -> Tensor:
        """[B, 2, K, T] log π and log μ of every completion token."""
        roles = Role.policy, Role.reference
        return token_scores(self.tools.policy, roles, drawn.prompts, drawn.completions, self.temperature)

    def notes(self) -> Sequence[str]:
        """The source of the reward."""
        source = "the preference's own, in log-odds"
        if self.config.reward is RewardKind.win_rate:
            source = f"the win rate against {self.config.reference_samples} completions of the reference"
        return [*super().notes(), f"reward: {source}"]
