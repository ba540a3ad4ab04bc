"""XPO: online DPO that also explores, by optimism (Xie et al., arXiv 2405.21046)."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.online_pairs import JudgedPairs, Pairing
from alignrun.algorithms.common.rollout import stack
from alignrun.algorithms.common.workload import Workload
from alignrun.algorithms.online_dpo import OnlineDPO, OnlineDPOConfig
from alignrun.config import require, schema
from alignrun.types import Completions, PromptBatch


@schema
class XPOConfig(OnlineDPOConfig):
    """How optimistic."""

    name: str = "xpo"
    optimism: float = 1e-5
    """α, the weight of log π(y') at completions y' of μ, which is minimised."""
    least_samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.pairing is Pairing.all, "algo.pairing", "must stay `all`: pairs here are of two policies")
        require(self.optimism >= 0, "algo.optimism", f"must not be negative, not {self.optimism}")


@algorithm("xpo", XPOConfig)
class XPO(OnlineDPO):
    """−p log σ(τh) − (1−p) log σ(−τh) + α log π(y'),  y ~ π,  y' ~ μ.

    Minimising log π at what μ writes makes the policy optimistic about what it would not write. It learns a
    Bradley-Terry reward, and no equilibrium. The metrics of samples are those of y.
    """

    config: XPOConfig
    policy_alone = False

    @classmethod
    def workload(cls, config: Any) -> Workload:
        """As many samples of the reference as of the policy; both are learned from."""
        samples: int = config.samples_per_prompt
        return Workload(learned=2 * samples, drawn=(0.0,) * samples + (1.0,) * samples)

    def draw(self, prompts: PromptBatch, step: int) -> Sequence[Completions]:
        """K completions of every prompt from the policy, then K from the reference, in one decoding loop."""
        samples = self.config.samples_per_prompt
        return self.rollouts.sample(prompts, [0.0] * samples + [1.0] * samples, step)

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[JudgedPairs]:
        """Each completion of the policy with each of the reference's."""
        samples = self.config.samples_per_prompt
        streams = self.draw(prompts, step)
        judged = self.rollouts.pairwise(prompts, streams[:samples], streams[samples:]).flatten(1)
        places = torch.cartesian_prod(torch.arange(samples), torch.arange(samples, 2 * samples)).to(judged.device)
        first, second = (side.expand(len(prompts), -1) for side in places.T)
        yield JudgedPairs(prompts, stack(streams), first, second, judged)

    def bonus(self, batch: JudgedPairs, log_probs: Tensor) -> Tensor:
        """α Σ log π(y') over the pairs."""
        return self.config.optimism * log_probs.gather(1, batch.second).sum()
