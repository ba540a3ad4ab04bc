"""Log-probabilities of tokens without ever holding the logits of all positions.

Legend: N positions (or B sequences of T), D hidden size, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def _log_probs_of(hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, temperature: float) -> Tensor:
    logits = head(hidden)
    # In half precision the sum over a large vocabulary would lose most of its digits.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1:
        logits = logits / temperature
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


CHUNK_SIZE = 512
"""Positions that pass the vocabulary head at once."""


def token_log_probs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """The log-probability of each target: log softmax(head(h)/temperature)[target].

    The head runs on `chunk_size` positions at a time and again in the backward pass (arXiv 1604.06174), so that the
    largest tensor in either is [chunk_size, V]. Pass only the positions that count.

    Shapes: hidden [N, D] or [B, T, D]; head maps [n, D] to logits [n, V]; targets [N] or [B, T] int64; the result is
    shaped as targets, in float32 (float64 for float64 logits). Raises ValueError if hidden and targets do not match.
    """
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(f"hidden {list(hidden.shape)} and targets {list(targets.shape)} are not of the same positions")
    hidden_chunks = torch.split(hidden.reshape(-1, hidden.shape[-1]), chunk_size)
    target_chunks = torch.split(targets.reshape(-1), chunk_size)
    parts: list[Tensor] = [
        checkpoint(_log_probs_of, h, head, t, temperature, use_reentrant=False)
        for h, t in zip(hidden_chunks, target_chunks, strict=True)
    ]
    return torch.cat(parts).reshape(targets.shape)
