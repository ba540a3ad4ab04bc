"""Metrics of training rollouts: drift from the reference and the usual signs of reward hacking.

A policy that exploits its preference tends to show it in length, in missing end tokens, and in repetition.

Legend: N completions, T tokens.
"""

import torch
from torch import Tensor

from alignrun.algorithms.common.mismatch import mismatch_metrics
from alignrun.models.policy import Policy
from alignrun.objectives.divergence import kl_k1, kl_k3
from alignrun.types import Completions


def rollout_metrics(
    policy: Policy, completions: Completions, log_probs: Tensor, log_ratio: Tensor
) -> dict[str, Tensor]:
    """Sums over the N completions, for `Loss.metrics`, from log π [N, T] and log π/μ [N, T], both detached.

    If the completions were drawn from π, kl and kl_k3 estimate KL(π‖μ) in nats, and entropy that of π in nats per
    token. Otherwise they are the same means under the sampling policy. `repetition` is the share of a completion's
    bigrams that repeat an earlier one. If a server drew them, `mismatch_kl` is KL(server‖π) in nats per token.
    """
    log_probs, log_ratio, mask = log_probs.detach(), log_ratio.detach(), completions.mask
    lengths = mask.sum(1)
    return {
        "kl": kl_k1(log_ratio).sum(),
        "kl_k3": kl_k3(log_ratio).sum(),
        "entropy": -(log_probs.sum(1) / lengths).sum(),
        "length": lengths.sum(),
        "eos_rate": policy.ends(completions).sum(),
        "repetition": repetition(completions).sum(),
        **mismatch_metrics(completions, log_probs),
    }


def repetition(completions: Completions) -> Tensor:
    """[N] the share of a completion's bigrams that repeat an earlier one; 0 if it has no bigrams."""
    tokens, mask = completions.tokens, completions.mask
    if tokens.shape[1] < 2:
        return torch.zeros(len(tokens), device=tokens.device)
    counted = mask[:, 1:]
    bigrams = tokens[:, :-1] * (tokens.max() + 1) + tokens[:, 1:]
    ranked = torch.where(counted, bigrams, -1).sort(dim=1).values
    repeats = ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] >= 0)).sum(1)
    return repeats / counted.sum(1).clamp(min=1)
