"""IPO-MD: IPO on samples of the mixture with μ, between online and offline IPO (arXiv 2403.08635)."""

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.schedules import check_mixture, mix_beta_at
from alignrun.algorithms.online_ipo import OnlineIPO, OnlineIPOConfig
from alignrun.config import Config, schema
from alignrun.generation.streams import Mixture, Source
from alignrun.types import Role


@schema
class IPOMDConfig(OnlineIPOConfig):
    """The mixture to sample from."""

    name: str = "ipo_md"
    mix_beta: float = 0.125
    """β, the weight of μ in the mixture that both completions are drawn from: 0 is online IPO, 1 offline IPO on μ."""
    mix_beta_end: float | None = None
    """β at the last step, reached linearly; by default β is constant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mixture(self.mix_beta, self.mix_beta_end)


@algorithm("ipo_md", IPOMDConfig)
class IPOMD(OnlineIPO):
    """τh² − (2p−1)h,  with both y, y' ~ π̃^β = Π_n softmax((1−β) log π + β log μ).

    It has the stationary point of Nash-MD, BR_τ of its own mixture, but updates π off-policy. The metrics kl and
    entropy are means over samples of the mixture, so kl is below KL(π‖μ); eval/kl is that of the policy.
    """

    config: IPOMDConfig

    @classmethod
    def source_at(cls, config: Config, step: int) -> Source:
        """π̃^β with β at this step."""
        mix_beta = mix_beta_at(step, config.train.steps, config.algo.mix_beta, config.algo.mix_beta_end)
        return Mixture(Role.policy, Role.reference, mix_beta)
