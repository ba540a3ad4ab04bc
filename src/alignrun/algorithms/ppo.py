"""PPO: RLHF with a value function and clipped steps (arXiv 1707.06347; details of arXiv 1909.08593, 2403.17031)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignrun.algorithms.base import Loss, Tools, algorithm
from alignrun.algorithms.common.batches import pieces
from alignrun.algorithms.common.minibatches import minibatches
from alignrun.algorithms.common.rewards import RewardAlgorithm, RewardConfig, Rewarded
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.schedules import check_batch, check_minibatches
from alignrun.config import AdapterKind, Config, require, schema
from alignrun.data import Dataset
from alignrun.errors import InputError
from alignrun.models.device import batch_to
from alignrun.models.value import Value
from alignrun.objectives.ppo import clipped_policy_loss, clipped_value_loss, generalised_advantages, whiten
from alignrun.types import Completions, PromptBatch, Role

REFERENCE_PROMPTS = 32
"""Prompts on which the reward of the reference is measured."""


@schema
class PPOConfig(RewardConfig):
    """Discount, trace, clips, their weight and the epochs are those of the summarisation work (arXiv 2403.17031)."""

    name: str = "ppo"
    discount: float = 1.0
    """γ, the discount of later rewards."""
    trace: float = 0.95
    """λ of the generalised advantages."""
    clip: float = 0.2
    """ε: the ratio π/π_old has no gradient beyond 1 ± ε."""
    value_clip: float = 0.2
    """A value has no gradient beyond this distance from its old value."""
    value_weight: float = 0.1
    """Weight of the value loss against the policy loss."""
    epochs: int = 4
    """Passes over one rollout."""
    minibatches: int = 1
    """Optimiser updates in one pass over the rollout."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a rollout to mean 0 and variance 1."""
    normalize_reward: bool = True
    """Normalise the reward to mean 0, standard deviation 1 on the reference's completions; τ is relative to it."""
    kl_target: float | None = None
    """Nats of KL(π‖μ) a completion that the controller of arXiv 1909.08593 steers τ towards; by default τ stays."""
    kl_horizon: int = 10_000
    """Completions over which the controller acts: the larger, the slower; fewer than a step's count as a step's."""

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
    """K completions for each of B prompts, frozen with all that was known when they were drawn."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    rewards: Tensor
    """[B, K] as they were given: not normalised, nothing taken."""
    log_probs: Tensor
    """[B, K, T] log π_old"""
    reference: Tensor
    """[B, K, T] log μ"""
    values: Tensor
    """[B, K, T] V_old"""
    advantages: Tensor
    """[B, K, T]"""
    returns: Tensor
    """[B, K, T] what the value function is to predict."""


@algorithm("ppo", PPOConfig)
class PPO(RewardAlgorithm):
    """max E[r(x, y)] − τ KL(π‖μ), by tokens: r_n = −τ log π(y_n)/μ(y_n), and at the last token + r(x, y).

    Â by GAE(γ, λ) of a value function V on the same base, whitened; then several steps on the frozen rollout of
    −min(ρÂ, clip(ρ, 1−ε, 1+ε)Â) + c·½max((V − R)², (V_clipped − R)²),  ρ = π/π_old, averaged over tokens.

    The optimum is μ exp(r/τ), with one reward for each completion, whoever it is compared with: no equilibrium. With
    `normalize_reward` r is divided by its deviation σ under μ, which makes the optimum μ exp(r/τσ) in the reward's own
    units; σ is logged as `reward_scale`.
    """

    config: PPOConfig
    value_function = True

    def __init__(self, config: PPOConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self.value = Value(tools.policy.backbone, tools.config.adapter)
        self._kl_factor = torch.ones((), dtype=torch.float64)
        """What the controller has made of τ."""
        self._shift_and_scale = torch.tensor([0.0, 1.0], dtype=torch.float64)
        self._measured = False

    @classmethod
    def check(cls, config: Config) -> None:
        """The value function is an adapter, and a step has prompts enough for its minibatches."""
        super().check(config)
        if config.adapter.name is AdapterKind.none:
            raise InputError("config: algo=ppo puts its value function on the same base: use adapter=lora or qlora")
        check_batch(config)

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The value function."""
        return self.value.trainable()

    def state(self) -> Mapping[str, Tensor]:
        """What the controller has come to, and by what rewards are shifted and scaled: a resumed run keeps both, since
        the value function has learned them."""
        return {"kl_factor": self._kl_factor, "reward_shift_and_scale": self._shift_and_scale}

    @property
    def kl_tau(self) -> Tensor:
        """τ as it is now."""
        return self.config.kl_tau * self._kl_factor

    def kl_weight(self) -> float:
        """τσ: the reward is divided by σ, and the KL is not."""
        return float(self.kl_tau * self._shift_and_scale[1])

    def prepare(self, data: Dataset[Any]) -> Dataset[Any]:
        """Measure the reward on completions of the reference, for the training data alone."""
        if self.config.normalize_reward and not self._measured:
            self._measured = True
            prompts = batch_to(data.batch_at(0, min(REFERENCE_PROMPTS, len(data))), self.tools.policy.device)
            size = self.tools.config.train.batch_size  # the memory for so many is there
            drawn = [
                self.draw(piece, number, purpose=98, role=Role.reference).rewards
                for number, piece in enumerate(pieces(prompts, size))
            ]
            rewards = torch.cat(drawn).double()
            spread = float(rewards.std())
            self._shift_and_scale.copy_(torch.tensor([float(rewards.mean()), spread if spread > 1e-6 else 1.0]))
        return data

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Rollout]:
        """Minibatches of one rollout, several times over; then the controller moves τ."""
        config, rollout = self.config, self._frozen(prompts, step)
        yield from minibatches(rollout, config.epochs, config.minibatches, self.tools.config.seed, step)
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
        """[B, 3, K, T] log π_old, log μ and V_old at every token."""
        log_probs = super()._token_scores(drawn)
        with self.value.active():
            values = self.value.values(drawn.prompts, drawn.completions.flat())
        return torch.cat([log_probs, values.reshape(log_probs[:, :1].shape)], 1)

    def loss(self, batch: Rollout) -> Loss:
        """Both clipped losses summed over the tokens of the micro-batch."""
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
            # Here and not with the rest: layers that compute their activations again in the backward pass must find
            # the value's adapter in force. Gradients are sums, and the loop divides them by the tokens of the batch.
            if torch.is_grad_enabled():
                (config.value_weight * value_loss).backward()
        log_probs = policy.log_probs(Role.policy, batch.prompts, completions, self.temperature)
        moved = (log_probs - old) * mask
        surrogate = torch.where(mask, clipped_policy_loss(moved, advantages, config.clip), 0.0).sum()
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
            # Of the policy that drew them.
            per_sequence={"reward": batch.rewards.sum(), **rollout_metrics(policy, completions, old, old - reference)},
            sequences=len(mask),
        )
