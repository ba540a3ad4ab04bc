"""IPO: the best response to the data's policy, without a Bradley-Terry model (Azar et al., arXiv 2310.12036)."""

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.pairs import PairsAlgorithm, PairsConfig
from alignrun.config import require, schema
from alignrun.objectives.preference import ipo_loss


@schema
class IPOConfig(PairsConfig):
    """Regularisation towards μ."""

    name: str = "ipo"
    kl_tau: float = 0.1
    """τ, the weight of KL(π‖μ) against a win rate in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kl_tau > 0, "algo.kl_tau", f"must be positive, not {self.kl_tau}")


@algorithm("ipo", IPOConfig)
class IPO(PairsAlgorithm):
    """(h − 1/(2τ))²: ΨPO with Ψ the identity (eq. 17).

    For data drawn from ν, the optimum is π(y) ∝ μ(y) exp(P(y ≻ ν)/τ), even if preferences are deterministic or
    intransitive.
    """

    config: IPOConfig

    @property
    def reward_scale(self) -> float:
        """τ: at the optimum, τh = P(y_w ≻ ν) − P(y_l ≻ ν)."""
        return self.config.kl_tau

    def objective(self, margin: Tensor, labels: Tensor) -> Tensor:
        """p(h − 1/(2τ))² + (1−p)(h + 1/(2τ))²."""
        return ipo_loss(margin, labels, self.config.kl_tau)
