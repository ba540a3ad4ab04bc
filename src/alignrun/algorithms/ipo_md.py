"""IPO-MD: online IPO on samples of the mixture with μ, between online and offline IPO (arXiv 2403.08635)."""

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.schedules import check_mixture, mix_beta_at
from alignrun.algorithms.online_ipo import OnlineIPO, OnlineIPOConfig
from alignrun.config import Config, schema
from alignrun.generation.streams import Mixture, Source
from alignrun.types import Role


@schema
class IPOMDConfig(OnlineIPOConfig):
    """How far the samples are from the policy."""

    name: str = "ipo_md"
    mix_beta: float = 0.125
    """β, the share of μ in the distribution that both completions come from: 0 is online IPO, 1 offline IPO on μ."""
    mix_beta_end: float | None = None
    """β at the last step, reached in a straight line; by default β stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixture(self.mix_beta, self.mix_beta_end)


@algorithm("ipo_md", IPOMDConfig)
class IPOMD(OnlineIPO):
    """τh² − (2p−1)h,  y, y' ~ π̃^β = Π_n softmax((1−β) log π + β log μ), both.

    It stops where Nash-MD does, at BR_τ of its own mixture, on another way: the update of π is off-policy. The
    metrics kl and entropy are means over samples of the mixture, below KL(π‖μ); eval/kl is that of the policy.
    """

    config: IPOMDConfig

    @classmethod
    def source_at(cls, config: Config, step: int) -> Source:
        """π̃^β, with the β of the step."""
        mix_beta = mix_beta_at(step, config.train.steps, config.algo.mix_beta, config.algo.mix_beta_end)
        return Mixture(Role.policy, Role.reference, mix_beta)
