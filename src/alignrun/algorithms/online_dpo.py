"""Online DPO: DPO on the policy's own samples (Guo et al., arXiv 2402.04792)."""

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.online_pairs import OnlinePairs, OnlinePairsConfig
from alignrun.config import schema
from alignrun.objectives.preference import dpo_loss


@schema
class OnlineDPOConfig(OnlinePairsConfig):
    """Regularisation towards μ (β in the paper), against a Bradley-Terry reward."""

    name: str = "online_dpo"


@algorithm("online_dpo", OnlineDPOConfig)
class OnlineDPO(OnlinePairs):
    """−p log σ(τh) − (1−p) log σ(−τh),  y, y' ~ π.

    If the preference is a Bradley-Terry model, the stationary point is the RLHF optimum, not the equilibrium
    (arXiv 2403.08635).
    """

    config: OnlineDPOConfig

    def objective(self, margins: Tensor, labels: Tensor) -> Tensor:
        """The soft-label DPO loss."""
        return dpo_loss(margins, labels, self.config.kl_tau)
