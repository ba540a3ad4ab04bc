"""ONPO: optimistic mirror descent with the last win rates as the prediction (Zhang et al., arXiv 2502.16852)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.online_pairs import JudgedPairs
from alignrun.algorithms.inpo import INPO, INPOConfig
from alignrun.config import require, schema
from alignrun.types import Role


@schema
class ONPOConfig(INPOConfig):
    """The step size, and the length of an iteration."""

    name: str = "onpo"
    kl_tau: float = 0.0
    """τ, the weight of KL(π‖μ); at 0, as in the paper, the policy leaves μ behind."""
    step_eta: float = 2.0
    """η, 100 in the paper; too large a step never settles: on the game cyc 3 does and 4 does not."""
    refresh_every: int = 16
    """Optimiser steps per iteration, an even number: half of them fit π'_{t+1}, the others π_{t+1}."""
    unregularised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.refresh_every % 2 == 0, "algo.refresh_every", f"must be even, for two fits, not {self.refresh_every}"
        )


@algorithm("onpo", ONPOConfig)
class ONPO(INPO):
    """π'_{t+1} ∝ π'_t exp(ηP(y ≻ π_t)),  then  π_{t+1} ∝ π'_{t+1} exp(ηP(y ≻ π_t)),  both by regression:

    h²/η − (2p − 1)h,  y, y' ~ π_t,  h = log π/π'(y) − log π/π'(y')  with π' = π'_t, then π'_{t+1}

    This is the paper's (h − η/2)² with soft labels, up to a constant and the factor 1/η. π_{t+1} predicts that the next
    win rates are the last ones. Exact steps are those of OMWU; the average has a duality gap in O(1/T), and the last
    iterate converges linearly if the equilibrium is unique. Two fits per iteration, but no opponents of the past.

    The KL to μ is not limited: see `train.max_kl`. With `kl_tau` > 0 both fits start at π'^(1−ητ) μ^(ητ), and the
    fixed point is π*_τ. In the first half of an iteration the trained policy is on its way to π'_{t+1}, so a run should
    end with an iteration. Sample metrics are those of π_t.
    """

    config: ONPOConfig
    snapshots = (Role.anchor, Role.auxiliary)

    def renew(self, step: int) -> None:
        """Snapshot π_t at the first step of an iteration, and π'_{t+1} in its middle."""
        super().renew(step)
        half = self.config.refresh_every // 2
        if step % self.config.refresh_every == half:
            self.tools.policy.lerp_towards(Role.auxiliary, 1.0)

    def anchored(self, batch: JudgedPairs) -> Tensor:
        """[N, T] log π' of all N = B·K completions."""
        return self.tools.policy.log_probs(Role.auxiliary, batch.prompts, batch.completions.flat(), self.temperature)

    def notes(self) -> Sequence[str]:
        """Whether the run ends in the middle of an iteration."""
        steps, every = self.tools.config.train.steps, self.config.refresh_every
        if steps % every == 0:
            return super().notes()
        return [
            *super().notes(),
            f"train.steps={steps} ends within an iteration of {every} steps, where the policy is on its way to π' or "
            f"to π: the last whole iteration ends at step {steps - steps % every}",
        ]
