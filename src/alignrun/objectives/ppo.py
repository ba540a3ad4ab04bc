"""Proximal policy optimisation: advantages, clipped losses and whitening (Schulman et al., arXiv 1707.06347).

Legend: B sequences, T completion tokens. Masks are bool and true on completion tokens, including the end-of-sequence
token; padding is on the right.
"""

import torch
from torch import Tensor


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, trace: float) -> Tensor:
    """A_n = Σ_{m≥n} (γλ)^(m−n) δ_m with δ_m = r_m + γV_{m+1} − V_m, V = 0 after the end. arXiv 1506.02438 eq. 16.

    V_n is the value before token n. At γ = λ = 1, A_n is the sum of future rewards minus V_n.

    Shapes: all [B, T]; zero off the mask.
    """
    rewards, values = (torch.where(mask, part, 0.0) for part in (rewards, values))
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    errors = rewards + discount * following - values
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    for n in range(values.shape[1] - 1, -1, -1):
        running = torch.where(mask[:, n], errors[:, n] + discount * trace * running, 0.0)
        advantages[:, n] = running
    return advantages


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Normalise to mean 0 and standard deviation 1 over the mask; zero off the mask. [B, T]."""
    total = mask.sum().clamp(min=1)
    mean = torch.where(mask, values, 0.0).sum() / total
    variance = torch.where(mask, (values - mean).square(), 0.0).sum() / total
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + 1e-8), 0.0)


def clipped_policy_loss(log_ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """−min(ρA, clip(ρ, 1−ε, 1+ε)A) with ρ = π/π_old, for each token. arXiv 1707.06347 eq. 7. [B, T] -> [B, T]."""
    ratio = log_ratio.exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ max((V − R)², (V_clipped − R)²), V_clipped within ε of V_old, for each token. arXiv 2005.12729. -> [B, T]."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
