"""OMWU: the unregularised equilibrium by optimistic multiplicative weights (Chen et al., arXiv 2512.24818)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.anchor import refresh_anchor
from alignrun.algorithms.inpo import INPO, INPOConfig
from alignrun.config import Config, schema
from alignrun.objectives.nash import optimistic_labels
from alignrun.types import Role


@schema
class OMWUConfig(INPOConfig):
    """The step size, and the length of an iteration."""

    name: str = "omwu"
    kl_tau: float = 0.0
    """τ, the weight of KL(π‖μ); at 0, as in the paper, the policy leaves μ behind."""
    step_eta: float = 2.0
    """η; too large a step never settles: on the game cyc the exact iteration converges at 3 and not at 4."""
    opponents_per_sample: int | None = 2
    """Of π_t and of π_{t−1}, those that each is judged against, drawn if every pair is a question; null is all."""
    unregularised: ClassVar[bool] = True


@algorithm("omwu", OMWUConfig)
class OMWU(INPO):
    """log π_{t+1} = log π_t + η(2P(y ≻ π_t) − P(y ≻ π_{t−1})) + c, by regression on pairs of π_t:

    h²/η − (2q − 1)h,  q = 2p − ½ − P(y ≻ π_{t−1}) + P(y' ≻ π_{t−1}),  y, y' ~ π_t,  h = log π/π_t(y) − log π/π_t(y')

    Multiplicative weights with the last change added as a prediction of the next. An exactly solved iteration is the
    step above, and where an equilibrium has full support the last iterate converges to one linearly; multiplicative
    weights (SPPO) leave it. The regression is our own: the abstract was available, the paper's neural form was not.
    Each iteration draws opponents from π_{t−1} as well; ONPO makes the same exact steps without them, by two fits.

    The KL to μ is not limited: see `train.max_kl`. With `kl_tau` > 0 the step starts at π_t^(1−ητ) μ^(ητ), and the
    fixed point is π*_τ. Sample metrics are those of π_t; accuracy and margin are with respect to q.
    """

    config: OMWUConfig
    snapshots = (Role.anchor, Role.previous)

    @classmethod
    def past(cls, config: Config) -> Sequence[Role]:
        """π_{t−1}."""
        return (Role.previous,)

    def renew(self, step: int) -> None:
        """At the first step of an iteration, π_t becomes π_{t−1} and the policy π_t."""
        refresh_anchor(self.tools.policy, step, self.config.refresh_every, (Role.previous,))

    def labels(self, labels: Tensor, edges: Sequence[Tensor]) -> Tensor:
        """[B, M] q."""
        return optimistic_labels(labels, edges[0])
