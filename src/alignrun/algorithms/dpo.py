"""DPO: the RLHF optimum without a reward model (Rafailov et al., arXiv 2305.18290)."""

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.pairs import PairsAlgorithm, PairsConfig
from alignrun.config import require, schema
from alignrun.objectives.preference import dpo_loss


@schema
class DPOConfig(PairsConfig):
    """Regularisation towards μ."""

    name: str = "dpo"
    kl_tau: float = 0.1
    """τ, the weight of KL(π‖μ) against a Bradley-Terry reward (β in the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kl_tau > 0, "algo.kl_tau", f"must be positive, not {self.kl_tau}")


@algorithm("dpo", DPOConfig)
class DPO(PairsAlgorithm):
    """−log σ(τh): the likelihood of a Bradley-Terry model whose reward is τ log π/μ (eq. 7).

    If a preference is deterministic, the margin grows without bound at every τ (arXiv 2310.12036 §4.2).
    """

    config: DPOConfig

    @property
    def reward_scale(self) -> float:
        """τ."""
        return self.config.kl_tau

    def objective(self, margin: Tensor, labels: Tensor) -> Tensor:
        """−p log σ(τh) − (1−p) log σ(−τh)."""
        return dpo_loss(margin, labels, self.config.kl_tau)
