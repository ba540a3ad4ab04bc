"""Estimates of KL(π‖μ) from single samples y ~ π, through the log ratio Δ = log π(y) − log μ(y).

k1 and k3 are unbiased: E_π[k1] = E_π[k3] = KL(π‖μ). k3 is never negative and varies less near π = μ; k2 is biased.
The value of an estimator says nothing about its gradient, and so they are not interchangeable (arXiv 2506.09477):

- In a reward, detached and multiplied by ∇log π, belongs k1: E[∇log π · Δ] = ∇KL(π‖μ). Token n takes the sum of k1
  over itself and what follows (`suffix_sum`); its own log ratio alone is biased from two tokens on.
- As a loss, differentiated at samples of π, only k2 is right: E[∇k2] = E[Δ∇log π] = ∇KL(π‖μ). There E[∇k1] = 0, and
  E[∇k3] = ∇KL(μ‖π), the gradient of the other divergence. Δ is that of the whole sample: a sum over the tokens of an
  estimator of each has these gradients for every token by itself, and misses what it does to those that follow.

Legend: B sequences, T completion tokens.
"""

import torch
from torch import Tensor


def kl_k1(log_ratio: Tensor) -> Tensor:
    """k1 = Δ, unbiased: for rewards and for reports. Any shape."""
    return log_ratio


def kl_k2(log_ratio: Tensor) -> Tensor:
    """k2 = ½Δ², biased, but with the gradient of KL(π‖μ): for losses. Any shape."""
    return 0.5 * log_ratio.square()


def kl_k3(log_ratio: Tensor) -> Tensor:
    """k3 = e^(−Δ) − 1 + Δ, unbiased and never negative: for reports. Any shape."""
    return torch.expm1(-log_ratio) + log_ratio


def suffix_sum(x: Tensor, mask: Tensor) -> Tensor:
    """What is still to come at each token: Σ_{m≥n} x_m over the tokens in the mask. x [B, T], mask [B, T] bool."""
    return torch.where(mask, x, 0.0).flip(-1).cumsum(-1).flip(-1)
