"""Nash-MD-PG: the policy preferred to any other, by mirror descent (Munos et al., arXiv 2312.00886)."""

from collections.abc import Sequence

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.game_gradient import GameGradient, GameGradientConfig
from alignrun.config import require, schema
from alignrun.types import Completions, PromptBatch


@schema
class NashMDConfig(GameGradientConfig):
    """The two knobs of Nash-MD: how strongly μ pulls, and how far the opponent is from the policy."""

    name: str = "nash_md"
    mix_beta: float = 0.125
    """β, the share of μ in the opponent: 0 is self-play, 1 a best response to μ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.mix_beta <= 1, "algo.mix_beta", f"must lie in [0, 1], not {self.mix_beta}")


@algorithm("nash_md", NashMDConfig)
class NashMD(GameGradient):
    """The opponent is the policy's token-wise geometric mixture with μ, π̃^β = Π_n softmax((1−β) log π + β log μ)."""

    config: NashMDConfig

    def draw(self, prompts: PromptBatch, step: int) -> tuple[Sequence[Completions], Sequence[Completions]]:
        """y ~ π and y' ~ π̃^β in one decoding loop."""
        samples = self.config.samples_per_prompt
        drawn = self.rollouts.sample(prompts, [0.0] * samples + [self.config.mix_beta] * samples, step)
        return drawn[:samples], drawn[samples:]
