"""Nash-MD-PG: the Nash equilibrium by mirror descent (Munos et al., arXiv 2312.00886)."""

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.game_gradient import GameGradient, GameGradientConfig
from alignrun.algorithms.common.schedules import check_mixture, mix_beta_at
from alignrun.config import Config, schema
from alignrun.generation.streams import Mixture, Source
from alignrun.types import Role


@schema
class NashMDConfig(GameGradientConfig):
    """Regularisation towards μ, and the mixture that the opponent plays."""

    name: str = "nash_md"
    mix_beta: float = 0.125
    """β, the weight of μ in the opponent: 0 is self-play, 1 a best response to μ."""
    mix_beta_end: float | None = None
    """β at the last step, reached linearly; by default β is constant. With 0 the run converges to π*_τ itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixture(self.mix_beta, self.mix_beta_end)


@algorithm("nash_md", NashMDConfig)
class NashMD(GameGradient):
    """The opponent is the policy's token-wise geometric mixture with μ, π̃^β = Π_n softmax((1−β) log π + β log μ).

    BR_τ(ν) ∝ μ(y) exp(P(y ≻ ν)/τ), the regularised best response, maximises P(π ≻ ν) − τ KL(π‖μ) against a fixed ν.
    With a constant β > 0 the stationary point is BR_τ of its own mixture, which differs from the equilibrium π*_τ
    (arXiv 2403.08635 Prop. 5.2). With β decaying to 0 it is π*_τ.
    """

    config: NashMDConfig

    @classmethod
    def opponent_at(cls, config: Config, step: int) -> Source:
        """π̃^β with β at this step."""
        mix_beta = mix_beta_at(step, config.train.steps, config.algo.mix_beta, config.algo.mix_beta_end)
        return Mixture(Role.policy, Role.reference, mix_beta)
