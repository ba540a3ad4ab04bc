"""SPO: the reward of a completion is its win rate among the others of its prompt (Swamy et al., arXiv 2401.04056)."""

from collections.abc import Iterator, Sequence

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.game_gradient import Judged
from alignrun.algorithms.common.opponents import pairs_among
from alignrun.algorithms.self_play import SelfPlay, SelfPlayConfig
from alignrun.config import Config, require, schema
from alignrun.generation.streams import Stream
from alignrun.types import PromptBatch, Role


@schema
class SPOConfig(SelfPlayConfig):
    """Regularisation towards μ, and the completions that are compared with each other."""

    name: str = "spo"
    samples_per_prompt: int = 8
    """Completions per prompt, which are each other's opponents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.samples_per_prompt >= 2, "algo.samples_per_prompt", "must be at least 2, to be compared")


@algorithm("spo", SPOConfig)
class SPO(SelfPlay):
    """∇ = E[Σ_n ∇log π(y_n) · (w(y) − ½ − τ Σ_{m≥n} log π(y_m)/μ(y_m))],  w(y_i) = mean_{j≠i} P(y_i ≻ y_j),  y_j ~ π.

    The gradient of self_play in expectation, and so the same stationary point π*_τ, from half as many completions:
    each is judged against the others instead of against opponents of their own. Any RL method may maximise w; this is
    the policy gradient, and `nash_pg` has PPO's clipped steps. The paper has no penalty (`kl_tau=0`), and then only the
    average of the policies approaches the equilibrium; it may also compare with completions of earlier steps, which
    this does not keep.
    """

    config: SPOConfig

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """K completions, all of which are learned from."""
        samples = config.algo.samples_per_prompt
        return (Stream(Role.policy, samples, learned=samples),)

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Pairs of the completions."""
        return pairs_among(config.algo.samples_per_prompt, opponents)

    def draw(self, prompts: PromptBatch, step: int) -> Judged:
        """K completions for each prompt, and the win rate of each among them."""
        (completions,) = self.rollouts.sample(prompts, self.streams(self.tools.config, step), step)
        judged = self.rollouts.among(prompts, completions, step)
        return Judged(prompts, completions, judged.win_rates(self.config.samples_per_prompt))

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Judged]:
        """One batch."""
        yield self.draw(prompts, step)
