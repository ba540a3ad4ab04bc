"""Regularised self-play: policy gradient against the policy itself (Munos et al., arXiv 2312.00886)."""

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.game_gradient import GameGradient, GameGradientConfig
from alignrun.config import Config, schema
from alignrun.generation.streams import Source
from alignrun.types import Role


@schema
class SelfPlayConfig(GameGradientConfig):
    """Regularisation towards μ."""

    name: str = "self_play"


@algorithm("self_play", SelfPlayConfig)
class SelfPlay(GameGradient):
    """The opponent is π itself, held fixed. The only stationary point is the regularised equilibrium π*_τ.

    In expectation the gradient equals that of online IPO up to a factor (arXiv 2403.08635), and of Nash-MD at β = 0.
    """

    config: SelfPlayConfig

    @classmethod
    def opponent_at(cls, config: Config, step: int) -> Source:
        """The policy itself."""
        return Role.policy
