"""Nash-EMA-PG: against an exponential moving average of the policy (Munos et al., arXiv 2312.00886)."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.game_gradient import GameGradient, GameGradientConfig, Judged
from alignrun.config import Config, require, schema
from alignrun.generation.streams import Source
from alignrun.types import PromptBatch, Role


@schema
class NashEMAConfig(GameGradientConfig):
    """The decay of the opponent's moving average."""

    name: str = "nash_ema"
    ema_decay: float = 0.999
    """β in θ̄_t = (1−β)θ_t + βθ̄_{t−1}: 0 is self-play, 1 a best response to μ. It averages about 1/(1−β) steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.ema_decay <= 1, "algo.ema_decay", f"must lie in [0, 1], not {self.ema_decay}")


@algorithm("nash_ema", NashEMAConfig)
class NashEMA(GameGradient):
    """The opponent has the averaged parameters θ̄_t = (1−β)θ_t + βθ̄_{t−1}, θ̄_0 = θ_0.

    The paper prints θ̄_t = (1−β)θ_t + βθ_0 and calls it recursive; this implements the recursion. A finished run holds
    the last policy in `adapter/` and the averaged policy in `average/`.
    """

    config: NashEMAConfig

    snapshots = (Role.average,)

    @classmethod
    def opponent_at(cls, config: Config, step: int) -> Source:
        """The averaged policy."""
        return Role.average

    def exports(self) -> Mapping[str, Callable[[Path], None]]:
        """The averaged policy, in `average/`."""
        return {"average": partial(self.tools.policy.save_adapter, role=Role.average)}

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Judged]:
        """One batch; after its step, the average is updated."""
        yield from super().collect(prompts, step)
        self.tools.policy.lerp_towards(Role.average, 1 - self.config.ema_decay)
