"""The policy gradient towards a best response to a frozen policy: what can be won against it."""

from collections.abc import Sequence
from typing import Any

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.game_gradient import GameGradient, GameGradientConfig
from alignrun.algorithms.common.workload import Workload
from alignrun.config import schema
from alignrun.models.policy import Role
from alignrun.types import Completions, PromptBatch


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
    def workload(cls, config: Any) -> Workload:
        """As many samples of the opponent as of the policy."""
        return Workload.against(config.samples_per_prompt, 1.0, copies=int(config.opponent is not None))

    def draw(self, prompts: PromptBatch, step: int) -> tuple[Sequence[Completions], Sequence[Completions]]:
        """y ~ π' and the opponent's y in one decoding loop."""
        samples = self.config.samples_per_prompt
        other = Role.reference if self.config.opponent is None else Role.opponent
        drawn = self.rollouts.sample(prompts, [0.0] * samples + [1.0] * samples, step, other)
        return drawn[:samples], drawn[samples:]
