"""Log-probabilities of tokens without materialising the logits of all positions.

Legend: N positions (or B sequences of T), D hidden size, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, D] to logits [n, V]."""


CHUNK_SIZE = 512
"""Positions per pass through the vocabulary head."""


def token_log_probs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """The log-probability of each target: log softmax(head(h)/temperature)[target].

    The head runs on `chunk_size` positions at a time, so the largest tensor is [chunk_size, V]. Pass only the positions
    that are needed. With a frozen head, the gradient for the hidden states is computed in the forward pass, from the
    same logits (`_FrozenHead`). With a trained head, the logits are recomputed in the backward pass (arXiv 1604.06174).

    Shapes: hidden [N, D] or [B, T, D]; head maps [n, D] to logits [n, V]; targets [N] or [B, T] int64. The result has
    the shape of targets, in float32 (float64 for float64 logits). Raises ValueError if hidden and targets do not match.
    """
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(f"hidden {list(hidden.shape)} and targets {list(targets.shape)} are not of the same positions")
    hidden_chunks = torch.split(hidden.reshape(-1, hidden.shape[-1]), chunk_size)
    target_chunks = torch.split(targets.reshape(-1), chunk_size)
    run: Callable[..., Tensor] = _values
    if torch.is_grad_enabled() and head(hidden_chunks[0][:0].detach()).requires_grad:
        run = partial(checkpoint, _values, use_reentrant=False)
    elif torch.is_grad_enabled() and hidden.requires_grad:
        run = _FrozenHead.apply
    parts = [run(h, head, t, temperature) for h, t in zip(hidden_chunks, target_chunks, strict=True)]
    return torch.cat(parts).reshape(targets.shape)


def _values(hidden: Tensor, head: Head, targets: Tensor, temperature: float) -> Tensor:
    return _picked(_log_softmax(head(hidden), temperature), targets)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    # In half precision, the sum over a large vocabulary would lose most of its digits.
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits if temperature == 1 else logits.to(wide) / temperature, dim=-1, dtype=wide)


def _picked(log_probs: Tensor, targets: Tensor) -> Tensor:
    return log_probs.gather(-1, targets[:, None]).squeeze(-1)


class _FrozenHead(torch.autograd.Function):
    """log softmax(z/T)[y] of the logits z = head(h), and ∂/∂h = Jᵀ(e_y − softmax(z/T))/T with J = ∂z/∂h.

    A token's log-probability depends only on its own hidden state, so the backward pass needs just the [n, D] gradient
    saved in the forward pass, and the head runs once.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, targets: Tensor, temperature: float) -> Tensor:
        with torch.enable_grad():
            inputs = hidden.detach().requires_grad_()
            logits = head(inputs)
        log_probs = _log_softmax(logits.detach(), temperature)
        values = _picked(log_probs, targets)
        to_logits = log_probs.exp_().neg_()  # in place: it is as large as the logits
        to_logits.scatter_add_(-1, targets[:, None], torch.ones_like(values)[:, None]).div_(temperature)
        ctx.save_for_backward(*torch.autograd.grad(logits, inputs, to_logits.to(logits.dtype)))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (to_hidden,) = ctx.saved_tensors
        return (grad[:, None] * to_hidden).to(to_hidden.dtype), None, None, None
