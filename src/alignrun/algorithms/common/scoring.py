"""Log-probabilities of completions without a gradient, of as many prompts at once as fit the memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignrun.algorithms.common.batches import shared
from alignrun.models.fitting import Pieces
from alignrun.models.policy import Policy
from alignrun.types import Completions, PromptBatch, Role, map_parts


def scoring(size: int | None, key: str) -> Pieces:
    """How many prompts this process scores together, halved when memory runs out; `key` configures the size."""
    return Pieces(size, "when scoring", key, "no score")


@dataclass(frozen=True, slots=True)
class Answered:
    """K completions for each of B prompts."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""


@torch.no_grad()
def token_scores(
    policy: Policy, roles: Sequence[Role], prompts: PromptBatch, completions: Completions, temperature: float = 1.0
) -> Tensor:
    """[B, R, K, T] log π of every token of completions [B, K, T] under each of R roles."""
    flat, shape = completions.flat(), completions.mask.shape
    return torch.stack([policy.log_probs(role, prompts, flat, temperature).reshape(shape) for role in roles], 1)


def log_ratio(
    policy: Policy, role: Role, prompts: PromptBatch, completions: Completions, temperature: float, memory: Pieces
) -> Tensor:
    """[B, T] log π/μ of a role at every token at the sampling temperature, with the prompts sharded over processes.

    It refers to the untruncated distributions: for completions sampled with top-k or top-p its mean is not a KL.
    """
    single = map_parts(completions, lambda part: None if part is None else part[:, None])

    def of(part: Answered) -> Tensor:
        return token_scores(policy, (role, Role.reference), part.prompts, part.completions, temperature)

    ours, base = shared(Answered(prompts, single), of, memory).squeeze(2).unbind(1)
    return ours - base
