"""Single-sample estimators of KL(π‖μ) for y ~ π, in terms of the log ratio Δ = log π(y) − log μ(y).

k1 and k3 are unbiased: E_π[k1] = E_π[k3] = KL(π‖μ). k3 is non-negative and has lower variance near π = μ. k2 is biased.
An unbiased value does not imply an unbiased gradient, so the estimators are not interchangeable (arXiv 2506.09477):

- As a reward, detached and multiplied by ∇log π, use k1: E[∇log π · Δ] = ∇KL(π‖μ). Token n takes the sum of k1 over
  itself and later tokens (`suffix_sum`); its own log ratio alone is biased for two or more tokens.
- As a loss, differentiated at samples of π, use k2: E[∇k2] = E[Δ∇log π] = ∇KL(π‖μ). In contrast, E[∇k1] = 0, and
  E[∇k3] = ∇KL(μ‖π), the gradient of the reverse divergence. Δ is that of the whole sample: a sum of per-token
  estimators has these gradients for each token alone and misses the effect of a token on later ones.

Legend: B sequences, T completion tokens.
"""

import torch
from torch import Tensor


def kl_k1(log_ratio: Tensor) -> Tensor:
    """k1 = Δ, unbiased: for rewards and metrics. Any shape."""
    return log_ratio


def kl_k2(log_ratio: Tensor) -> Tensor:
    """k2 = ½Δ², biased but with the gradient of KL(π‖μ): for losses. Any shape."""
    return 0.5 * log_ratio.square()


def kl_k3(log_ratio: Tensor) -> Tensor:
    """k3 = e^(−Δ) − 1 + Δ, unbiased and non-negative: for metrics. Any shape."""
    return torch.expm1(-log_ratio) + log_ratio


def suffix_sum(x: Tensor, mask: Tensor) -> Tensor:
    """The sum over each token and later ones, Σ_{m≥n} x_m, over the mask. x [B, T], mask [B, T] bool."""
    return torch.where(mask, x, 0.0).flip(-1).cumsum(-1).flip(-1)
