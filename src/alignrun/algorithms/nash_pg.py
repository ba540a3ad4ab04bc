"""NashPG: PPO's steps in self-play, pulled to a magnet that is renewed (Yu et al., arXiv 2510.18183)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignrun.algorithms.base import Loss, algorithm
from alignrun.algorithms.common.anchor import refresh_anchor
from alignrun.algorithms.common.batches import shared
from alignrun.algorithms.common.game_gradient import Judged
from alignrun.algorithms.common.minibatches import MinibatchAlgorithm
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.schedules import check_games, check_minibatches
from alignrun.algorithms.common.scoring import token_scores
from alignrun.algorithms.spo import SPO, SPOConfig
from alignrun.config import require, schema
from alignrun.objectives.divergence import kl_k2
from alignrun.objectives.ppo import clipped_policy_loss
from alignrun.types import Completions, PromptBatch, Role


@schema
class NashPGConfig(SPOConfig):
    """The pull of the magnet, how long it is kept, and the clipped steps."""

    name: str = "nash_pg"
    kl_tau: float = 0.0
    """τ, the weight of KL(π‖μ); at 0, as in the paper, the policy leaves μ behind."""
    opponents_per_sample: int | None = None
    """Others that each is judged against, drawn if every pair is a question to the preference; null is all."""
    anchor_tau: float = 0.2
    """The weight of KL(π‖π_k) to the magnet π_k: larger values give more games, each easier to solve."""
    refresh_every: int = 30
    """Steps, of one rollout each, after which the policy becomes the next magnet."""
    clip: float = 0.2
    """ε: the ratio π/π_old has no gradient beyond 1 ± ε."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser updates per pass over the rollout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_games(self.anchor_tau, self.refresh_every)
        require(self.clip > 0, "algo.clip", f"must be positive, not {self.clip}")
        check_minibatches(self.epochs, self.minibatches)


@dataclass(frozen=True, slots=True)
class Played:
    """A frozen rollout: K completions for each of B prompts."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    win_rates: Tensor
    """[B, K] against the others of the prompt."""
    log_probs: Tensor
    """[B, K, T] log π_old"""
    magnet: Tensor
    """[B, K, T] log π_k"""
    reference: Tensor
    """[B, K, T] log μ"""


@algorithm("nash_pg", NashPGConfig)
class NashPG(MinibatchAlgorithm, SPO):
    """−Σ_n min(ρA, clip(ρ, 1−ε, 1+ε)A) + ½τ_a(log π(y)/π_k(y))² + ½τ(log π(y)/μ(y))²,  A = w(y) − ½,  ρ = π/π_old,

    y_1 … y_K ~ π_old,  w(y_i) = mean_{j≠i} P(y_i ≻ y_j),  π_0 = μ,  τ_a = `anchor_tau`

    Several steps on each rollout. After `refresh_every` rollouts the policy becomes the magnet π_k, which tends to an
    equilibrium of the preference itself. The game of each magnet is that of COMAL: one step on every rollout is in
    expectation a step of `comal`, and more steps make more of each completion. The squares have the gradient of the KL
    on-policy.

    The paper's agents play games of many moves and have a critic; open_spiel's implementation also whitens advantages
    and rewards entropy. Here the win rate comes at the end of a completion and ½ is the exact baseline. The other two
    would move the point at which it stops, and are left out. The KL to μ is not limited: see `train.max_kl`. If a
    rollout server drew y, the surrogate of a token is weighted with
    min(π_old/π_server, `generation.server_weight_cap`).
    """

    config: NashPGConfig
    snapshots = (Role.anchor,)

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Any]:
        """Minibatches of one rollout, for several epochs; the first step of a game sets the magnet to the policy."""
        refresh_anchor(self.tools.policy, step, self.config.refresh_every)
        yield from super().collect(prompts, step)

    @torch.no_grad()
    def _frozen(self, prompts: PromptBatch, step: int) -> Played:
        drawn = self.draw(prompts, step)
        scores = shared(drawn, self._token_scores, self.rollouts.scoring)
        return Played(prompts, drawn.completions, drawn.preference, *scores.unbind(1))

    def _token_scores(self, drawn: Judged) -> Tensor:
        """[B, 3, K, T] log π, log π_k and log μ of every completion token."""
        roles, temperature = (Role.policy, Role.anchor, Role.reference), self.tools.config.generation.temperature
        return token_scores(self.tools.policy, roles, drawn.prompts, drawn.completions, temperature)

    def loss(self, batch: Any) -> Loss:
        """The clipped surrogate and the penalties, summed over the sequences of the micro-batch."""
        policy, config, completions = self.tools.policy, self.config, batch.completions.flat()
        mask, win_rates = completions.mask, batch.win_rates.flatten()
        old, magnet, reference = (part.flatten(0, 1) for part in (batch.log_probs, batch.magnet, batch.reference))
        temperature = self.tools.config.generation.temperature
        log_probs = policy.log_probs(Role.policy, batch.prompts, completions, temperature)
        moved = (log_probs - old) * mask
        losses = clipped_policy_loss(moved, win_rates[:, None] - 0.5, config.clip)
        surrogate = torch.where(mask, losses * self.correction.by_token(completions, old), 0.0).sum(1)
        to_magnet, to_reference = ((log_probs - other).sum(1) for other in (magnet, reference))
        penalty = config.anchor_tau * kl_k2(to_magnet) + config.kl_tau * kl_k2(to_reference)
        clipped = ((moved.detach().exp() - 1).abs() > config.clip) & mask
        return Loss(
            total=(surrogate + penalty).sum(),
            targets=len(mask),
            metrics={
                "clip_fraction": (clipped.sum(1) / mask.sum(1)).sum(),
                "log_ratio_anchor": (old - magnet).sum(),
                **rollout_metrics(policy, completions, old, old - reference),
            },
            tokens=mask.sum(),
        )
