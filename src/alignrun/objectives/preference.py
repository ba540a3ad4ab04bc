"""Learning from pairs: policies (DPO, IPO, GPO), rewards (Bradley-Terry) and pairwise preference models.

Legend: B pairs (y_w, y_l), T completion tokens. h [B] is a margin of log ratios; labels [B] are p = P(y_w ≻ y_l) in
[0, 1], 1 if y_w is known to have won. Every loss is one number for each pair, [B], in the wider dtype of the two, and
does not change when a pair is turned round: h to −h, p to 1 − p. Raises ValueError if shapes do not match.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Labels and margins


def sequence_log_probs(log_probs: Tensor, mask: Tensor, *, length_norm: bool) -> Tensor:
    """The log-probability of a completion: log π(y) = Σ_n log π(y_n), or with `length_norm` its mean over tokens.

    The theory needs the sum: only that is the log of a distribution over completions, whose normaliser cancels in h.
    With the mean, an ablation, the optimum is no longer ∝ μ exp(·/τ), and long completions stray further from μ.

    Shapes: log_probs and mask (bool, true on the completion) [N, T] or [B, 2, T]; the result lacks T.
    """
    total = torch.where(mask, log_probs, 0.0).sum(-1)
    return total / mask.sum(-1).clamp(min=1) if length_norm else total


def margins(policy: Tensor, reference: Tensor) -> Tensor:
    """The margin h(y_w, y_l) = log π(y_w)/μ(y_w) − log π(y_l)/μ(y_l). arXiv 2310.12036.

    Shapes: the log-probabilities of (y_w, y_l) under the policy and the reference, [B, 2]; the result is [B].
    """
    winner, loser = (policy - reference).unbind(-1)
    return winner - loser


def smooth(labels: Tensor, label_smoothing: float) -> Tensor:
    """Labels of which a share ε is taken to be wrong: p(1−ε) + (1−p)ε. Conservative DPO (Mitchell 2023). Any shape."""
    return labels * (1 - label_smoothing) + (1 - labels) * label_smoothing


# Policies


def _logistic(z: Tensor) -> Tensor:
    return -F.logsigmoid(z)  # softplus(−z), but exact for every z: F.softplus is linear above 20


def _expected(loss: Callable[[Tensor], Tensor], z: Tensor, labels: Tensor) -> Tensor:
    """The mean over who wins: p·loss(z) + (1−p)·loss(−z)."""
    if labels.shape != z.shape:
        raise ValueError(f"labels {list(labels.shape)} and margins {list(z.shape)} are not of the same pairs")
    # What cannot happen is evaluated at 0: if its loss overflowed, 0·∞ would be NaN.
    won, lost = torch.where(labels > 0, z, 0.0), torch.where(labels < 1, -z, 0.0)
    return labels * loss(won) + (1 - labels) * loss(lost)


def dpo_loss(h: Tensor, labels: Tensor, kl_tau: float) -> Tensor:
    """DPO: −p log σ(τh) − (1−p) log σ(−τh). arXiv 2305.18290 eq. 7, with soft labels. [B], [B] -> [B].

    Its gradient in h, τ(σ(τh) − p), vanishes for no finite h if p is 0 or 1: the policy then leaves μ at any τ.
    """
    return _expected(_logistic, kl_tau * h, labels)


def ipo_loss(h: Tensor, labels: Tensor, kl_tau: float) -> Tensor:
    """IPO: p(h − 1/(2τ))² + (1−p)(h + 1/(2τ))². arXiv 2310.12036 eq. 17, 2403.08635. [B], [B] -> [B].

    For pairs from ν×ν, ν positive wherever μ is, the unique minimum is the regularised best response BR_τ(ν).
    """
    return _expected(lambda z: (z - 1 / (2 * kl_tau)).square(), h, labels)


SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": _logistic,
    "squared": lambda z: (z - 1).square(),
    "hinge": lambda z: F.relu(1 - z),
    "exponential": lambda z: torch.exp(-z),
    "truncated_quadratic": lambda z: F.relu(1 - z).square(),
    "savage": lambda z: torch.sigmoid(-z).square(),
}
"""Losses f of a margin z that stand in for the error rate, with f'(0) < 0. arXiv 2402.05749 Table 1.

name                 f(z)              f'(0)  f''(0)  argmin of p f(z) + (1−p) f(−z)
logistic (DPO)       log(1 + e^(−z))   −½     ¼       logit p
squared (IPO)        (z − 1)²          −2     2       2p − 1
hinge (SLiC)         max(0, 1 − z)     −1     0       sign(p − ½)
exponential          e^(−z)            −1     1       ½ logit p
truncated_quadratic  max(0, 1 − z)²    −2     2       2p − 1
savage               (1 + e^z)^(−2)    −¼     ⅛       logit p

On pairs far on the wrong side the exponential overflows, in float32 below z = −88, and Savage, bounded and not convex,
has no gradient left.
"""


def gpo_loss(h: Tensor, labels: Tensor, margin_scale: float, surrogate: str) -> Tensor:
    """GPO: p f(sh) + (1−p) f(−sh), f one of `SURROGATES`, s = `margin_scale`. arXiv 2402.05749. [B], [B] -> [B].

    The logistic one at s = τ is DPO, the squared one at s = 2τ is (2τ)² times IPO. Raises ValueError for an unknown
    surrogate.
    """
    if surrogate not in SURROGATES:
        raise ValueError(f"no surrogate {surrogate!r}: choose from {', '.join(SURROGATES)}")
    return _expected(SURROGATES[surrogate], margin_scale * h, labels)


# Rewards and preference models


def bradley_terry_loss(rewards: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of P(y_w ≻ y_l) = σ(r_w − r_l). arXiv 1706.03741 §2.2.3. [B, 2], [B] -> [B]."""
    winner, loser = rewards.unbind(-1)
    return _expected(_logistic, winner - loser, labels)


def antisymmetric_logits(scores: Tensor) -> Tensor:
    """The logit of P(y ≻ y') from the scores z that a model gives to both orders: ½(z(x, y, y') − z(x, y', y)).

    With it P(y ≻ y') + P(y' ≻ y) = 1, as the games of arXiv 2312.00886 require, for any model and any pair. Training in
    random order would only bring a model near to that.

    Shapes: scores [B, 2], of (y, y') and of (y', y); the result is [B].
    """
    one, other = scores.unbind(-1)
    return 0.5 * (one - other)


def skew_logits(first: Tensor, second: Tensor, scales: Tensor | None = None) -> Tensor:
    """vᵀRv' with R = diag(λ₁J, …, λ_kJ), J = (0 1; −1 0): the logit of a general preference. arXiv 2410.02197 §4.

    Any skew-symmetric matrix of preferences is one of these, cycles included, and swapping v and v' changes the sign to
    the last bit. With unit vectors and Σλ = 1 it lies in [−1, 1].

    Shapes: first and second [..., 2k], scales λ [..., k], by default 1; the result is [...].
    """
    (a, b), (c, d) = (side.unflatten(-1, (-1, 2)).unbind(-1) for side in (first, second))
    turned: Tensor = a * d - b * c
    return (turned if scales is None else scales * turned).sum(-1)


def preference_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy −p log P − (1−p) log(1−P) of P = σ of `antisymmetric_logits`. arXiv 2312.00886.

    Without the antisymmetry, −log P(y_w ≻ y_l) is least for P ≡ 1, as long as y_w comes first in every pair.

    Shapes: scores [B, 2], of (y_w, y_l) and of (y_l, y_w); labels [B]; the result is [B].
    """
    return _expected(_logistic, antisymmetric_logits(scores), labels)
