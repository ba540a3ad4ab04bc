"""MNPO: INPO against several past policies (Wu et al., arXiv 2509.23102)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.anchor import refresh_anchor
from alignrun.algorithms.common.online_pairs import JudgedPairs
from alignrun.algorithms.inpo import INPO, INPOConfig
from alignrun.config import Config, require, schema
from alignrun.types import Role

LONGEST = 4
"""The policies that there are roles for."""


@schema
class MNPOConfig(INPOConfig):
    """The past policies, and their weights."""

    name: str = "mnpo"
    history: int = 2
    """Policies in the anchor, at most 4: those at the start of this iteration, of the one before, …; 1 is INPO."""
    history_weights: list[float] | None = None
    """λ_j of each, from the latest to the earliest, up to a common factor; null is equal weights."""
    past_opponents: bool = True
    """Judge completions against the earlier policies too, as the game says; false is the authors' code, and cheaper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.history <= LONGEST, "algo.history", f"must lie in [1, {LONGEST}], not {self.history}")
        weights = self.history_weights
        require(
            weights is None or len(weights) == self.history,
            "algo.history_weights",
            f"must be algo.history={self.history} numbers, not {weights}",
        )
        require(
            weights is None or (min(weights) >= 0 and sum(weights) > 0),
            "algo.history_weights",
            f"must not be negative, nor all zero, not {weights}",
        )


@algorithm("mnpo", MNPOConfig)
class MNPO(INPO):
    """h²/s − (2q−1)h,  y, y' ~ π_t, with log ratios to μ^(sτ) (Π_j π_{t−j}^λ_j)^(1−sτ),  Σ_j λ_j = 1:

    h = log π(y)/π(y') − sτ log μ(y)/μ(y') − (1−sτ) Σ_j λ_j log π_{t−j}(y)/π_{t−j}(y')
    q = λ_0 p + Σ_{j≥1} λ_j (½ + P(y ≻ π_{t−j}) − P(y' ≻ π_{t−j}))

    The game of many players, in which the opponents are past policies. An exactly solved iteration is a mirror-descent
    step from their weighted geometric mean, by sΣ_j λ_j P(y ≻ π_{t−j}), and the fixed point is π*_τ. In the authors'
    code opponents of the past enter through the anchor alone (q = p): `past_opponents=false`. The paper uses sτ = 1/3
    and s = 133. Sample metrics are those of π_t; accuracy and margin are with respect to q.
    """

    config: MNPOConfig
    snapshots = (Role.anchor, Role.previous, Role.previous_2, Role.previous_3)

    @classmethod
    def kept(cls, config: Config) -> Sequence[Role]:
        """As many past policies as the history is long."""
        return cls.snapshots[: config.algo.history]

    @classmethod
    def past(cls, config: Config) -> Sequence[Role]:
        """π_{t−1}, π_{t−2}, … where they are opponents."""
        return cls.kept(config)[1:] if config.algo.past_opponents else ()

    @property
    def weights(self) -> list[float]:
        """λ_j, which sum to 1."""
        weights = self.config.history_weights or [1.0] * self.config.history
        return [weight / sum(weights) for weight in weights]

    def labels(self, labels: Tensor, edges: Sequence[Tensor]) -> Tensor:
        """[B, M] q."""
        if not edges:
            return labels
        mixed = self.weights[0] * labels
        for weight, edge in zip(self.weights[1:], edges, strict=True):
            mixed = mixed + weight * (0.5 + edge)
        return mixed

    def renew(self, step: int) -> None:
        """At the first step of an iteration, the policy becomes π_t, and the others move one place."""
        past = self.kept(self.tools.config)[1:]
        refresh_anchor(self.tools.policy, step, self.config.refresh_every, past)

    def anchored(self, batch: JudgedPairs) -> Tensor:
        """[N, T] Σ_j λ_j log π_{t−j} of all N = B·K completions."""
        policy, completions = self.tools.policy, batch.completions.flat()
        log_probs = [
            weight * policy.log_probs(role, batch.prompts, completions, self.temperature)
            for role, weight in zip(self.kept(self.tools.config), self.weights, strict=True)
        ]
        return torch.stack(log_probs).sum(0)
