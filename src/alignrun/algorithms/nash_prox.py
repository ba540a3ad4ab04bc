"""Nash-Prox: the equilibrium by the proximal-point method, a sequence of easier games (arXiv 2505.19731 v2)."""

from collections.abc import Iterator

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.anchor import refresh_anchor
from alignrun.algorithms.common.game_gradient import Judged
from alignrun.algorithms.common.schedules import check_games
from alignrun.algorithms.self_play import SelfPlay, SelfPlayConfig
from alignrun.config import schema
from alignrun.types import Completions, PromptBatch, Role


@schema
class NashProxConfig(SelfPlayConfig):
    """Regularisation towards the last proximal point, and how long it is kept."""

    name: str = "nash_prox"
    anchor_tau: float = 0.02
    """τ/η, the weight of KL(π‖π_k) next to `kl_tau`: larger values give more games, each easier to solve."""
    refresh_every: int = 8
    """Optimiser steps per game, after which the policy becomes the next π_k."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_games(self.anchor_tau, self.refresh_every)


@algorithm("nash_prox", NashProxConfig)
class NashProx(SelfPlay):
    """π_{k+1} is the equilibrium of the game with the additional penalty (τ/η) KL(π‖π_k); the fixed point is π*_τ.

    y ~ π,  y' ~ π
    ∇ = E[Σ_n ∇log π(y_n) · (P(y ≻ y' | x) − ½ − Σ_{m≥n} (τ log π/μ + (τ/η) log π/π_k)_m)]

    If every game is solved exactly, KL(π*_τ‖π_k) contracts by at least 1/(1+η) per game, for any η. Here a game gets
    `refresh_every` steps. The estimator is our own: the paper's was not available.
    """

    config: NashProxConfig
    snapshots = (Role.anchor,)

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Judged]:
        """One batch of self-play; the first of every game snapshots the policy as the anchor."""
        refresh_anchor(self.tools.policy, step, self.config.refresh_every)
        yield from super().collect(prompts, step)

    def penalty(self, prompts: PromptBatch, completions: Completions, log_probs: Tensor, log_ratio: Tensor) -> Tensor:
        """[N, T] τ log π/μ + (τ/η) log π/π_k."""
        temperature = self.tools.config.generation.temperature
        anchor = self.tools.policy.log_probs(Role.anchor, prompts, completions, temperature)
        return self.config.kl_tau * log_ratio + self.config.anchor_tau * (log_probs - anchor)
