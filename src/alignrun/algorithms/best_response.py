"""The policy gradient towards a best response to a frozen policy: what can be won against it (arXiv 2312.00886)."""

from collections.abc import Sequence

from alignrun.algorithms.base import Measure, algorithm
from alignrun.algorithms.common.game_gradient import GameGradient, GameGradientConfig
from alignrun.config import Config, schema
from alignrun.generation.streams import Source
from alignrun.types import Role


@schema
class BestResponseConfig(GameGradientConfig):
    """Whom to beat."""

    name: str = "best_response"
    opponent: str | None = None
    """A finished run on the same base, or a PEFT adapter folder; by default the reference μ."""


@algorithm("best_response", BestResponseConfig)
class BestResponse(GameGradient):
    """max_π' P(π' ≻ π) − τ KL(π'‖μ) against a frozen π, whose optimum is BR_τ(π) ∝ μ(y) exp(P(y ≻ π | x)/τ).

    What is reached is a lower bound on what π can lose: P(π' ≻ π) − ½ on its exploitability, and P_τ(π' ≻ π) − ½ on
    half its duality gap (arXiv 2312.00886). Against another policy than μ, π' starts as a copy of it, at ½.
    """

    config: BestResponseConfig

    @classmethod
    def opponent(cls, config: Config) -> str | None:
        """The policy to beat, where it is not the reference."""
        path: str | None = config.algo.opponent
        return path

    def evaluators(self) -> Sequence[Measure]:
        """The policy against its opponent, then against the reference."""
        return [Measure.policy] if self.config.opponent is None else [Measure.opponent, Measure.policy]

    @classmethod
    def opponent_at(cls, config: Config, step: int) -> Source:
        """The frozen policy, or the reference."""
        return Role.reference if config.algo.opponent is None else Role.opponent
