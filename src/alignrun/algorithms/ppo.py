"""PPO: RLHF with a value function and clipped steps (arXiv 1707.06347; details of arXiv 1909.08593, 2403.17031)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignrun.algorithms.base import Loss, Tools, algorithm
from alignrun.algorithms.common.batches import pieces
from alignrun.algorithms.common.minibatches import MinibatchAlgorithm
from alignrun.algorithms.common.rewards import RewardAlgorithm, RewardConfig, Rewarded
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.schedules import check_minibatches
from alignrun.config import AdapterKind, Config, require, schema
from alignrun.data.dataset import Dataset
from alignrun.errors import InputError
from alignrun.models.device import batch_to
from alignrun.models.value import Value
from alignrun.objectives.ppo import clipped_policy_loss, clipped_value_loss, generalised_advantages, whiten
from alignrun.types import Completions, PromptBatch, Role

REFERENCE_PROMPTS = 32
"""Prompts used to measure the reward of the reference."""


@schema
class PPOConfig(RewardConfig):
    """The defaults of discount, trace, clipping, value weight and epochs follow arXiv 2403.17031."""

    name: str = "ppo"
    discount: float = 1.0
    """γ, the discount of later rewards."""
    trace: float = 0.95
    """λ of generalised advantage estimation."""
    clip: float = 0.2
    """ε: the ratio π/π_old has no gradient beyond 1 ± ε."""
    value_clip: float = 0.2
    """A value has no gradient beyond this distance from the old value."""
    value_weight: float = 0.1
    """Weight of the value loss relative to the policy loss."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser updates per pass over the rollout."""
    whiten_advantages: bool = True
    """Whiten the advantages of a rollout to mean 0 and variance 1."""
    normalize_reward: bool = True
    """Normalise the reward to mean 0 and standard deviation 1 on the reference's completions; τ is relative to it."""
    kl_target: float | None = None
    """Target KL(π‖μ), nats per completion, of the adaptive τ of arXiv 1909.08593; by default τ is constant."""
    kl_horizon: int = 10_000
    """Time scale of the controller in completions, at least those of one step; larger is slower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("clip", "value_clip", "kl_horizon"):
            require(getattr(self, name) > 0, f"algo.{name}", f"must be positive, not {getattr(self, name)}")
        for name in ("discount", "trace"):
            require(0 <= getattr(self, name) <= 1, f"algo.{name}", f"must lie in [0, 1], not {getattr(self, name)}")
        require(self.value_weight >= 0, "algo.value_weight", f"must not be negative, not {self.value_weight}")
        require(self.kl_target is None or self.kl_target > 0, "algo.kl_target", f"must be positive: {self.kl_target}")
        require(
            self.kl_target is None or self.kl_tau > 0, "algo.kl_tau", "must be positive for algo.kl_target to move it"
        )
        check_minibatches(self.epochs, self.minibatches)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A frozen rollout: K completions for each of B prompts, with scores from the policy that drew them."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    rewards: Tensor
    """[B, K] raw: neither normalised nor penalised."""
    log_probs: Tensor
    """[B, K, T] log π_old"""
    reference: Tensor
    """[B, K, T] log μ"""
    values: Tensor
    """[B, K, T] V_old"""
    advantages: Tensor
    """[B, K, T]"""
    returns: Tensor
    """[B, K, T] the regression targets of the value function."""


@algorithm("ppo", PPOConfig)
class PPO(MinibatchAlgorithm, RewardAlgorithm):
    """max E[r(x, y)] − τ KL(π‖μ), per token: r_n = −τ log π(y_n)/μ(y_n), plus r(x, y) at the last token.

    Â from GAE(γ, λ) with a value function V on the same base, whitened; then several steps on the frozen rollout with
    −min(ρÂ, clip(ρ, 1−ε, 1+ε)Â) + c·½max((V − R)², (V_clipped − R)²),  ρ = π/π_old, averaged over tokens.

    The optimum is μ exp(r/τ): the reward does not depend on an opponent, so this is not an equilibrium. With
    `normalize_reward`, r is divided by its standard deviation σ under μ, which makes the optimum μ exp(r/τσ) in the
    reward's own units; σ is logged as `reward_scale`. If a rollout server drew y, the surrogate of a token is weighted
    with min(π_old/π_server, `generation.server_weight_cap`).
    """

    config: PPOConfig
    value_function = True

    def __init__(self, config: PPOConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self.value = Value(tools.policy.backbone, tools.config.adapter)
        self._kl_factor = torch.ones((), dtype=torch.float64)
        """The controller's factor on τ."""
        self._shift_and_scale = torch.tensor([0.0, 1.0], dtype=torch.float64)
        self._measured = False

    @classmethod
    def check(cls, config: Config) -> None:
        """Require an adapter for the value function."""
        super().check(config)
        if config.adapter.name is AdapterKind.none:
            raise InputError("config: algo=ppo puts its value function on the same base: use adapter=lora or qlora")

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The value function."""
        return self.value.trainable()

    def state(self) -> Mapping[str, Tensor]:
        """The controller's factor and the reward's shift and scale, which the value function has learned."""
        return {"kl_factor": self._kl_factor, "reward_shift_and_scale": self._shift_and_scale}

    @property
    def kl_tau(self) -> Tensor:
        """The current τ."""
        return self.config.kl_tau * self._kl_factor

    def kl_weight(self) -> float:
        """τσ: the reward is divided by σ, but the KL is not."""
        return float(self.kl_tau * self._shift_and_scale[1])

    def prepare(self, data: Dataset[Any]) -> Dataset[Any]:
        """Measure the reward on completions of the reference, on the training data only."""
        if self.config.normalize_reward and not self._measured:
            self._measured = True
            prompts = batch_to(data.batch_at(0, min(REFERENCE_PROMPTS, len(data))), self.tools.policy.device)
            size = self.tools.config.train.batch_size  # a batch size known to fit in memory
            drawn = [
                self.draw(piece, number, purpose=98, role=Role.reference).rewards
                for number, piece in enumerate(pieces(prompts, size))
            ]
            rewards = torch.cat(drawn).double()
            spread = float(rewards.std())
            self._shift_and_scale.copy_(torch.tensor([float(rewards.mean()), spread if spread > 1e-6 else 1.0]))
        return data

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Rollout]:
        """Minibatches of one rollout, for several epochs; then the controller adapts τ."""
        config, rollout = self.config, self._frozen(prompts, step)
        yield from self._minibatches(rollout, step)
        if config.kl_target is not None:
            measured = (rollout.log_probs - rollout.reference).sum(2).mean().item()
            error = min(0.2, max(-0.2, measured / config.kl_target - 1))
            self._kl_factor *= 1 + error * min(1.0, rollout.rewards.numel() / config.kl_horizon)

    @torch.no_grad()
    def _frozen(self, prompts: PromptBatch, step: int) -> Rollout:
        drawn = self.draw(prompts, step)
        completions, shape = drawn.completions.flat(), drawn.completions.mask.shape
        log_probs, reference, values = (part.flatten(0, 1) for part in self.token_scores(drawn).unbind(1))
        shift, scale = self._shift_and_scale.to(drawn.rewards)
        scores = (drawn.rewards - shift) / scale - drawn.penalties
        rewards = -self.kl_tau.to(log_probs) * (log_probs - reference)
        last = completions.mask.sum(1, keepdim=True) - 1
        rewards.scatter_add_(1, last, scores.flatten()[:, None].to(rewards))
        mask, config = completions.mask, self.config
        advantages = generalised_advantages(rewards, values, mask, config.discount, config.trace)
        returns = advantages + values
        if config.whiten_advantages:
            advantages = whiten(advantages, mask)
        frozen = (part.reshape(shape) for part in (log_probs, reference, values, advantages, returns))
        return Rollout(prompts, drawn.completions, drawn.rewards, *frozen)

    def _token_scores(self, drawn: Rewarded) -> Tensor:
        """[B, 3, K, T] log π_old, log μ and V_old of every token."""
        log_probs = super()._token_scores(drawn)
        with self.value.active():
            values = self.value.values(drawn.prompts, drawn.completions.flat())
        return torch.cat([log_probs, values.reshape(log_probs[:, :1].shape)], 1)

    def loss(self, batch: Rollout) -> Loss:
        """Both clipped losses, summed over the tokens of the micro-batch."""
        policy, completions, config = self.tools.policy, batch.completions.flat(), self.config
        mask = completions.mask
        old, reference, old_values, advantages, returns = (
            part.flatten(0, 1)
            for part in (batch.log_probs, batch.reference, batch.values, batch.advantages, batch.returns)
        )
        with self.value.active():
            values = self.value.values(batch.prompts, completions)
            errors = clipped_value_loss(values, old_values, returns, config.value_clip)
            value_loss = torch.where(mask, errors, 0.0).sum()
            # Backward inside this context: with gradient checkpointing, recomputed layers must see the value adapter.
            # Gradients are sums; the training loop divides them by the tokens of the batch.
            if torch.is_grad_enabled():
                (config.value_weight * value_loss).backward()
        log_probs = policy.log_probs(Role.policy, batch.prompts, completions, self.temperature)
        moved = (log_probs - old) * mask
        losses = clipped_policy_loss(moved, advantages, config.clip) * self.correction.by_token(completions, old)
        surrogate = torch.where(mask, losses, 0.0).sum()
        tokens = mask.sum()
        clipped = ((moved.detach().exp() - 1).abs() > config.clip) & mask
        return Loss(
            total=surrogate + config.value_weight * value_loss.detach(),
            targets=tokens,
            metrics={
                "value_loss": value_loss.detach(),
                "clip_fraction": clipped.sum(),
                "moved": (torch.expm1(moved.detach()) - moved.detach()).sum(),
                "kl_tau": self.kl_tau.to(tokens.device) * tokens,
                "reward_scale": self._shift_and_scale[1].to(tokens.device) * tokens,
            },
            tokens=tokens,
            # Metrics of the policy that drew the completions.
            per_sequence={"reward": batch.rewards.sum(), **rollout_metrics(policy, completions, old, old - reference)},
            sequences=len(mask),
        )
