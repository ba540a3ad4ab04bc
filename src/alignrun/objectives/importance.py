"""Importance weights for samples of a policy that another engine drew, with numerics of its own.

Legend: B sequences, T completion tokens. Masks are bool and true on completion tokens. `log_ratio` is log π/q of every
token, with π the trained policy and q what the engine drew from.
"""

import torch
from torch import Tensor


def token_weights(log_ratio: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(π/q, cap) of every token, 1 off the mask: truncated importance sampling by token. [B, T] -> [B, T].

    For objectives that weigh each token by itself, such as PPO's. F. Yao et al., "Your efficient RL framework secretly
    brings you off-policy RL training", 2025. It leaves out that the tokens before are drawn from q, too.
    """
    return torch.where(mask, log_ratio.exp().clamp(max=cap), 1.0)


def sequence_weights(log_ratio: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(Π_n π/q, cap) of every sequence: truncated importance sampling, doi 10.1198/106186008X320456. -> [B].

    For objectives in which a whole completion is one action: where the cap does not bind, expectations under q become
    those under π exactly.
    """
    return torch.where(mask, log_ratio, 0.0).sum(-1).exp().clamp(max=cap)
