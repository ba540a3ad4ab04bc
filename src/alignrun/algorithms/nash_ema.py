"""Nash-EMA-PG: against a slowly moving average of the policy's own past (Munos et al., arXiv 2312.00886)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from alignrun.algorithms.base import Tools, algorithm
from alignrun.algorithms.common.game_gradient import GameGradient, GameGradientConfig, Judged
from alignrun.algorithms.common.workload import Workload
from alignrun.config import require, schema
from alignrun.models.policy import Role
from alignrun.types import Completions, PromptBatch


@schema
class NashEMAConfig(GameGradientConfig):
    """How slowly the opponent follows."""

    name: str = "nash_ema"
    ema_decay: float = 0.999
    """β in θ̄_t = (1−β)θ_t + βθ̄_{t−1}: 0 is self-play, 1 a best response to μ. About 1/(1−β) steps are averaged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.ema_decay <= 1, "algo.ema_decay", f"must lie in [0, 1], not {self.ema_decay}")


@algorithm("nash_ema", NashEMAConfig)
class NashEMA(GameGradient):
    """The opponent has the averaged parameters θ̄_t = (1−β)θ_t + βθ̄_{t−1}, θ̄_0 = θ_0.

    The paper prints θ̄_t = (1−β)θ_t + βθ_0 and calls it recursive; the recursion is what is done here. A finished run
    holds the last policy in `adapter/` and the averaged one in `average/`.
    """

    config: NashEMAConfig

    def __init__(self, config: NashEMAConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        tools.policy.snapshot(Role.average)

    @classmethod
    def workload(cls, config: Any) -> Workload:
        """As many samples of the averaged policy as of the policy."""
        return Workload.against(config.samples_per_prompt, 1.0, copies=1)

    def state(self) -> Mapping[str, Tensor]:
        """The averaged weights."""
        return self.tools.policy.snapshot_weights(Role.average)

    def exports(self) -> Mapping[str, Callable[[Path], None]]:
        """The averaged policy, in `average/`."""
        return {"average": partial(self.tools.policy.save_adapter, role=Role.average)}

    def draw(self, prompts: PromptBatch, step: int) -> tuple[Sequence[Completions], Sequence[Completions]]:
        """y ~ π and y' ~ the averaged policy in one decoding loop."""
        samples = self.config.samples_per_prompt
        drawn = self.rollouts.sample(prompts, [0.0] * samples + [1.0] * samples, step, Role.average)
        return drawn[:samples], drawn[samples:]

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Judged]:
        """One batch, after whose step the average moves."""
        yield from super().collect(prompts, step)
        self.tools.policy.lerp_towards(Role.average, 1 - self.config.ema_decay)
