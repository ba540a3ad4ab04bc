"""The policy gradient of Nash-MD-PG and its relatives (self-play, Nash-EMA, best response).

Legend: B sequences, T completion tokens. Masks are bool, true on the tokens of the completion, its end-of-sequence
token included.
"""

import torch
from torch import Tensor

from alignrun.objectives.divergence import suffix_sum


def nash_md_advantages(preference: Tensor, log_ratio: Tensor, mask: Tensor, kl_tau: float) -> Tensor:
    """What multiplies the score of token n: A_n = P(y ≻ y') − ½ − τ Σ_{m≥n} log(π/μ)_m. arXiv 2312.00886 eqs. 13-14.

    The paper multiplies the score of the whole completion by the whole log ratio; leaving out the tokens before n has
    the same mean and less variance. Detached, and zero off the mask.

    Shapes: preference [B], log_ratio [B, T], mask [B, T]; the result is [B, T].
    """
    advantages = preference.detach()[:, None] - 0.5 - kl_tau * suffix_sum(log_ratio.detach(), mask)
    return torch.where(mask, advantages, 0.0)


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """The surrogate −Σ_sequences Σ_n log π(y_n)·A_n, whose gradient is that of arXiv 2312.00886 eqs. 13-14.

    A sum, also over sequences: divide by the number of sequences of the whole batch, never by tokens. No gradient
    passes through the advantages.

    Shapes: log_probs, advantages and mask [B, T]; the result is a scalar.
    """
    return -torch.where(mask, log_probs * advantages.detach(), 0.0).sum()
