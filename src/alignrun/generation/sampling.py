"""Pure functions to draw tokens from log-probabilities.

Legend: S rows sampled together, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Tokens per block of the two-level search in `sample`."""


def truncate(log_probs: Tensor, *, temperature: float | Tensor = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Apply the temperature, keep the top_k tokens, then the smallest nucleus of mass top_p, and renormalise.

    Nucleus sampling is arXiv 1904.09751. `top_k=0`, `top_p=1` and `temperature=1` have no effect. Ties are broken by
    the lower token id, and the most likely token is always kept.

    Shapes: log_probs and the result [..., V]; per-row temperatures [..., 1].
    """
    if isinstance(temperature, Tensor) or temperature != 1:
        log_probs = torch.log_softmax(log_probs / temperature, dim=-1)
    if top_k == 0 and top_p == 1:
        return log_probs
    order = log_probs.argsort(dim=-1, descending=True, stable=True)
    ranked = log_probs.gather(-1, order)
    if top_k > 0:
        ranked[..., top_k:] = -torch.inf
    if top_p < 1:
        # Remove a token if the tokens before it already have mass top_p; the first is always kept.
        held = torch.softmax(ranked.double(), dim=-1).cumsum(-1)[..., :-1]
        ranked[..., 1:].masked_fill_(held >= top_p, -torch.inf)
    kept = torch.full_like(log_probs, -torch.inf).scatter(-1, order, ranked)
    return torch.log_softmax(kept, dim=-1)


def sample(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row by inverse transform sampling: the first y with Σ_{v≤y} p_v > u·Σ_v p_v.

    Each row uses only its own number u in [0, 1), so its draw does not depend on the other rows of the batch. A token
    of probability zero is never drawn. A row of NaN or of zero mass returns a valid token, so that the failure appears
    in the loss rather than as an index error in an embedding.

    Shapes: log_probs [S, V], uniforms [S] float64; the result is [S] int64.
    """
    # Find the block of tokens, then the token in it: a cumulative sum over the whole vocabulary is slow on any device.
    vocabulary = log_probs.shape[-1]
    probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32)).exp()
    blocks = F.pad(probs, (0, -vocabulary % BLOCK)).unflatten(-1, (-1, BLOCK))
    masses = blocks.sum(-1).double()  # summing in float64 would copy the whole vocabulary
    block, rest = _invert(masses, uniforms * masses.sum(-1))
    inside = blocks.take_along_dim(block[:, None, None], 1).squeeze(1)
    token, _ = _invert(inside.double(), rest)
    return (block * BLOCK + token).clamp(max=vocabulary - 1)


def _invert(masses: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first n with Σ_{m≤n} mass_m > target, and the target minus the masses before n.

    Shapes: masses [S, N], target [S]; both results [S]. Rounding may raise the sum at an n of zero mass, or keep the
    sum from reaching the target. So only n of positive mass are chosen, the last one if the target is not reached.
    """
    places = torch.arange(masses.shape[-1], device=masses.device)
    held = masses > 0
    sums = masses.cumsum(-1)
    first = torch.where(held & (sums > target[:, None]), places, len(places)).amin(-1)
    last = torch.where(held, places, 0).amax(-1)
    found = torch.minimum(first, last)
    before = (sums - masses).gather(-1, found[:, None]).squeeze(-1)
    return found, (target - before).clamp(min=0)
