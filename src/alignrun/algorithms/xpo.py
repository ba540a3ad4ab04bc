"""XPO: online DPO with optimistic exploration (Xie et al., arXiv 2405.21046)."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.online_pairs import JudgedPairs, Pairing
from alignrun.algorithms.common.opponents import pairs_against
from alignrun.algorithms.common.stacking import concatenate
from alignrun.algorithms.online_dpo import OnlineDPO, OnlineDPOConfig
from alignrun.config import Config, require, schema
from alignrun.generation.streams import Stream
from alignrun.types import PromptBatch, Role


@schema
class XPOConfig(OnlineDPOConfig):
    """The strength of the optimism."""

    name: str = "xpo"
    optimism: float = 1e-5
    """α, the weight of log π(y') on completions y' of μ, which is minimised."""
    opponents_per_sample: int | None = 2
    """Completions of μ that each is paired with, drawn if every pair is a question to the preference; null is all."""
    least_samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.pairing is Pairing.all, "algo.pairing", "must stay `all`: pairs here are of two policies")
        require(self.optimism >= 0, "algo.optimism", f"must not be negative, not {self.optimism}")


@algorithm("xpo", XPOConfig)
class XPO(OnlineDPO):
    """−p log σ(τh) − (1−p) log σ(−τh) + α log π(y'),  y ~ π,  y' ~ μ.

    Minimising log π on completions of μ makes the policy explore completions that are unlikely under μ. The optimum is
    that of a Bradley-Terry reward, not the equilibrium. Sample metrics are those of y.
    """

    config: XPOConfig

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """As many completions of the reference as of the policy; both pass the model with a gradient."""
        samples = config.algo.samples_per_prompt
        return tuple(Stream(role, samples, learned=samples) for role in (Role.policy, Role.reference))

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Each completion of the policy with some of the reference's."""
        samples = config.algo.samples_per_prompt
        return pairs_against(samples, samples, opponents)

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[JudgedPairs]:
        """Pair each completion of the policy with all of the reference's, or with some."""
        samples = self.config.samples_per_prompt
        ours, theirs = self.rollouts.sample(prompts, self.streams(self.tools.config, step), step)
        judged = self.rollouts.against(prompts, ours, theirs, step)
        completions = concatenate([ours, theirs], dim=1)
        yield JudgedPairs(prompts, completions, judged.first, judged.second + samples, judged.labels)

    def bonus(self, batch: JudgedPairs, log_probs: Tensor) -> Tensor:
        """α Σ log π(y') over the pairs."""
        return self.config.optimism * log_probs.gather(1, batch.second).sum()
