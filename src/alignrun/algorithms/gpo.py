"""GPO: the family that includes DPO, IPO and SLiC (Tang et al., arXiv 2402.05749)."""

from enum import Enum

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.pairs import PairsAlgorithm, PairsConfig
from alignrun.config import require, schema
from alignrun.objectives.preference import gpo_loss


class Surrogate(str, Enum):
    """The surrogate f as a function of z = s·h."""

    logistic = "logistic"
    """log(1 + e^(−z)): DPO."""
    squared = "squared"
    """(z − 1)²: IPO at s = 2τ."""
    hinge = "hinge"
    """max(0, 1 − z): SLiC."""
    exponential = "exponential"
    """e^(−z)."""
    truncated_quadratic = "truncated_quadratic"
    """max(0, 1 − z)²."""
    savage = "savage"
    """(1 + e^z)^(−2), non-convex."""


@schema
class GPOConfig(PairsConfig):
    """The surrogate and its scale."""

    name: str = "gpo"
    surrogate: Surrogate = Surrogate.logistic
    margin_scale: float = 0.1
    """s in z = s·h (β in the paper): the larger, the stronger the regularisation. DPO's τ, twice IPO's τ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.margin_scale > 0, "algo.margin_scale", f"must be positive, not {self.margin_scale}")


@algorithm("gpo", GPOConfig)
class GPO(PairsAlgorithm):
    """E[f(s·h)] with a surrogate f of the zero-one loss, f'(0) < 0."""

    config: GPOConfig

    @property
    def reward_scale(self) -> float:
        """s."""
        return self.config.margin_scale

    def objective(self, margin: Tensor, labels: Tensor) -> Tensor:
        """p f(s·h) + (1−p) f(−s·h)."""
        return gpo_loss(margin, labels, self.config.margin_scale, self.config.surrogate.value)
