"""Regularised self-play: the policy gradient against the policy itself (Munos et al., arXiv 2312.00886)."""

from collections.abc import Sequence

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.game_gradient import GameGradient, GameGradientConfig
from alignrun.config import schema
from alignrun.types import Completions, PromptBatch


@schema
class SelfPlayConfig(GameGradientConfig):
    """How strongly μ pulls."""

    name: str = "self_play"


@algorithm("self_play", SelfPlayConfig)
class SelfPlay(GameGradient):
    """The opponent is π itself, held fixed. The only stationary point is the regularised equilibrium π*_τ.

    In expectation the gradient is that of online IPO, up to a factor (arXiv 2403.08635), and of Nash-MD at β = 0.
    """

    config: SelfPlayConfig
    policy_alone = True

    def draw(self, prompts: PromptBatch, step: int) -> tuple[Sequence[Completions], Sequence[Completions]]:
        """y ~ π and y' ~ π in one decoding loop."""
        samples = self.config.samples_per_prompt
        drawn = self.rollouts.sample(prompts, [0.0] * (2 * samples), step)
        return drawn[:samples], drawn[samples:]
