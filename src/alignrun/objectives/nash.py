"""Losses with equilibria as stationary points: policy gradients and regressions for preference games.

Legend: B sequences or pairs, T completion tokens; h is a margin of log ratios. Masks are bool and true on completion
tokens, including the end-of-sequence token.
"""

import torch
from torch import Tensor

from alignrun.objectives.divergence import suffix_sum


def suffix_advantages(preference: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    """The advantage of token n: A_n = P(y ≻ y') − ½ − Σ_{m≥n} c_m. arXiv 2312.00886 eqs. 13-14.

    In the paper the penalty is c = τ log π/μ, and the score of the whole completion is multiplied by the whole penalty.
    Omitting the tokens before n gives the same mean with less variance. The result is detached, and zero off the mask.

    Shapes: preference [B], penalty [B, T], mask [B, T]; the result is [B, T].
    """
    advantages = preference.detach()[:, None] - 0.5 - suffix_sum(penalty.detach(), mask)
    return torch.where(mask, advantages, 0.0)


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """The surrogate −Σ_sequences Σ_n log π(y_n)·A_n, whose gradient is that of arXiv 2312.00886 eqs. 13-14.

    It is a sum over tokens and sequences: divide by the number of sequences in the whole batch, not by tokens. No
    gradient flows through the advantages.

    Shapes: log_probs, advantages and mask [B, T]; the result is a scalar.
    """
    return -torch.where(mask, log_probs * advantages.detach(), 0.0).sum()


def online_ipo_loss(h: Tensor, labels: Tensor, kl_tau: float) -> Tensor:
    """Online IPO and IPO-MD: τh² − (2p−1)h for p = P(y ≻ y'). arXiv 2403.08635. [B], [B] -> [B].

    It is τ times the IPO loss p(h − 1/(2τ))² + (1−p)(h + 1/(2τ))², up to a constant. For fixed samples y, y' ~ π, its
    expected gradient is −4 times that of P(π ≻ sg π) − τKL(π‖μ).
    """
    return kl_tau * h.square() - (2 * labels - 1) * h


def optimistic_labels(labels: Tensor, edges: Tensor) -> Tensor:
    """Labels q = 2p − ½ − d, p = P(y ≻ y'), d = P(y ≻ π_{t−1}) − P(y' ≻ π_{t−1}). [...], [...] -> [...].

    With p itself the regression h²/η − (2p−1)h on pairs y, y' ~ π_t is solved by multiplicative weights,
    π_t exp(ηPπ_t); with q in its place by the optimistic step π_t exp(η(2Pπ_t − Pπ_{t−1})) of arXiv 2512.24818. They
    may lie outside [0, 1].
    """
    return 2 * labels - 0.5 - edges


def extragradient_loss(h: Tensor, edges: Tensor, kl_tau: float) -> Tensor:
    """EGPO: τ(h − d/τ)² with the edge d = P(y ≻ π) − P(y' ≻ π) against a fixed π. arXiv 2503.08942. [B], [B] -> [B].

    It is τ times the paper's loss. For any distribution of (y, y') with full support, it vanishes only at BR_τ(π).
    """
    return kl_tau * (h - edges / kl_tau).square()


def self_play_regression_loss(log_ratio: Tensor, win_rates: Tensor, step_eta: float) -> Tensor:
    """SPPO: (log π(y)/π_t(y) − η(P(y ≻ π_t) − ½))²/η. arXiv 2405.00675. [B], [B] -> [B].

    It is 1/η times the paper's loss, with η = 1/β of the paper. Its solution is the multiplicative-weights step
    π ∝ π_t exp(ηP(y ≻ π_t)), with the normaliser approximated by exp(η/2).
    """
    return (log_ratio - step_eta * (win_rates - 0.5)).square() / step_eta


def relative_reward_loss(h: Tensor, gain: Tensor, step_eta: float) -> Tensor:
    """REBEL: (h − η(R(y) − R(y')))²/η with the gain R(y) − R(y'). arXiv 2404.16767. [...], [...] -> [...].

    h = log π(y)/π_t(y) − log π(y')/π_t(y'). It is η times the paper's loss ((1/η)h − gain)², and for pairs from π_t it
    vanishes only at π ∝ π_t exp(ηR).
    """
    return (h - step_eta * gain).square() / step_eta
