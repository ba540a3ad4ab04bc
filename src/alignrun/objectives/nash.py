"""Losses whose stationary points are equilibria: policy gradients of preference games, and regressions.

Legend: B sequences or pairs, T completion tokens; h is a margin of log ratios. Masks are bool, true on the tokens of
the completion, its end-of-sequence token included.
"""

import torch
from torch import Tensor

from alignrun.objectives.divergence import suffix_sum


def suffix_advantages(preference: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    """What multiplies the score of token n: A_n = P(y ≻ y') − ½ − Σ_{m≥n} c_m. arXiv 2312.00886 eqs. 13-14.

    There the penalty is c = τ log π/μ. The paper multiplies the score of the whole completion by the whole penalty;
    leaving out the tokens before n has the same mean and less variance. Detached, and zero off the mask.

    Shapes: preference [B], penalty [B, T], mask [B, T]; the result is [B, T].
    """
    advantages = preference.detach()[:, None] - 0.5 - suffix_sum(penalty.detach(), mask)
    return torch.where(mask, advantages, 0.0)


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """The surrogate −Σ_sequences Σ_n log π(y_n)·A_n, whose gradient is that of arXiv 2312.00886 eqs. 13-14.

    A sum, also over sequences: divide by the number of sequences of the whole batch, never by tokens. No gradient
    passes through the advantages.

    Shapes: log_probs, advantages and mask [B, T]; the result is a scalar.
    """
    return -torch.where(mask, log_probs * advantages.detach(), 0.0).sum()


def online_ipo_loss(h: Tensor, labels: Tensor, kl_tau: float) -> Tensor:
    """Online IPO and IPO-MD: τh² − (2p−1)h for p = P(y ≻ y'). arXiv 2403.08635. [B], [B] -> [B].

    τ times the IPO loss p(h − 1/(2τ))² + (1−p)(h + 1/(2τ))², but for a constant. For y, y' ~ π held fixed, its expected
    gradient is −4 times that of P(π ≻ sg π) − τKL(π‖μ).
    """
    return kl_tau * h.square() - (2 * labels - 1) * h


def extragradient_loss(h: Tensor, edges: Tensor, kl_tau: float) -> Tensor:
    """EGPO: τ(h − d/τ)² for the edge d = P(y ≻ π) − P(y' ≻ π) over a fixed π. arXiv 2503.08942. [B], [B] -> [B].

    τ times the paper's loss. Whatever distribution (y, y') come from, as long as nothing is left out, it is zero at
    BR_τ(π) alone.
    """
    return kl_tau * (h - edges / kl_tau).square()


def self_play_regression_loss(log_ratio: Tensor, win_rates: Tensor, step_eta: float) -> Tensor:
    """SPPO: (log π(y)/π_t(y) − η(P(y ≻ π_t) − ½))²/η. arXiv 2405.00675. [B], [B] -> [B].

    1/η times the paper's loss, whose 1/β is η. Its solution is the step of multiplicative weights,
    π ∝ π_t exp(ηP(y ≻ π_t)), but for the normaliser, which is taken to be exp(η/2).
    """
    return (log_ratio - step_eta * (win_rates - 0.5)).square() / step_eta
