"""Online IPO: the regularised equilibrium by regression on the policy's own samples (arXiv 2403.08635)."""

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.online_pairs import OnlinePairs, OnlinePairsConfig
from alignrun.config import schema
from alignrun.objectives.nash import online_ipo_loss


@schema
class OnlineIPOConfig(OnlinePairsConfig):
    """Regularisation towards μ, against a win rate in [0, 1]."""

    name: str = "online_ipo"


@algorithm("online_ipo", OnlineIPOConfig)
class OnlineIPO(OnlinePairs):
    """τh² − (2p−1)h,  y, y' ~ π: τ[p(h − 1/(2τ))² + (1−p)(h + 1/(2τ))²] up to a constant.

    The expected gradient is −4 times that of regularised self-play, so the only stationary point is π*_τ.
    """

    config: OnlineIPOConfig

    def objective(self, margins: Tensor, labels: Tensor) -> Tensor:
        """The soft-label IPO loss, scaled by τ."""
        return online_ipo_loss(margins, labels, self.config.kl_tau)
