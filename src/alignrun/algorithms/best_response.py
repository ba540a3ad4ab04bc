"""Policy gradient towards a best response to a frozen policy (arXiv 2312.00886)."""

from collections.abc import Sequence

from alignrun.algorithms.base import Measure, algorithm
from alignrun.algorithms.common.game_gradient import GameGradient, GameGradientConfig
from alignrun.config import Config, schema
from alignrun.generation.streams import Source
from alignrun.types import Role


@schema
class BestResponseConfig(GameGradientConfig):
    """The opponent."""

    name: str = "best_response"
    opponent: str | None = None
    """A finished run on the same base, or a PEFT adapter folder; default: the reference μ."""


@algorithm("best_response", BestResponseConfig)
class BestResponse(GameGradient):
    """max_π' P(π' ≻ π) − τ KL(π'‖μ) against a frozen π, whose optimum is BR_τ(π) ∝ μ(y) exp(P(y ≻ π | x)/τ).

    The trained π' gives lower bounds: P(π' ≻ π) − ½ on the exploitability of π, and P_τ(π' ≻ π) − ½ on half its
    duality gap (arXiv 2312.00886). If π is not μ, π' starts as a copy of π, at a win rate of ½.
    """

    config: BestResponseConfig

    @classmethod
    def opponent(cls, config: Config) -> str | None:
        """The configured opponent, or None for the reference."""
        path: str | None = config.algo.opponent
        return path

    def evaluators(self) -> Sequence[Measure]:
        """The policy against its opponent, then against the reference."""
        return [Measure.policy] if self.config.opponent is None else [Measure.opponent, Measure.policy]

    @classmethod
    def opponent_at(cls, config: Config, step: int) -> Source:
        """The frozen policy, or the reference."""
        return Role.reference if config.algo.opponent is None else Role.opponent
