"""Drawing tokens from log-probabilities; pure functions.

Legend: S rows that are sampled together, V vocabulary.
"""

import torch
from torch import Tensor


def truncate(log_probs: Tensor, *, temperature: float | Tensor = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Sharpen by the temperature, keep the top_k tokens, of these the fewest that hold top_p, and renormalise.

    Nucleus sampling is arXiv 1904.09751. `top_k=0`, `top_p=1` and `temperature=1` change nothing. Of equally likely
    tokens the one with the lower id comes first, and the most likely token always stays.

    Shapes: log_probs and the result [..., V]; a temperature for each row is [..., 1].
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
        # A token goes when those before it already hold top_p; none is before the first.
        held = torch.softmax(ranked.double(), dim=-1).cumsum(-1)[..., :-1]
        ranked[..., 1:].masked_fill_(held >= top_p, -torch.inf)
    kept = torch.full_like(log_probs, -torch.inf).scatter(-1, order, ranked)
    return torch.log_softmax(kept, dim=-1)


def sample(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token a row by inverting the distribution function: the first y with Σ_{v≤y} p_v > u·Σ_v p_v.

    Each row uses its own number u in [0, 1) and nothing else, so its draw does not depend on which other rows are in
    the batch. A token of probability zero is never drawn.

    Shapes: log_probs [S, V], uniforms [S] float64; the result is [S] int64.
    """
    probs = log_probs.double().exp()
    # A parallel cumulative sum may round upwards at a token of probability zero: there it must stay where it was.
    cumulative = probs.cumsum(-1).masked_fill(probs == 0, 0.0).cummax(-1).values
    # u·total < total also after rounding, for every float64 below 1. Only a row of NaN or without any probability
    # runs past the end; its token is kept valid, so that the failure shows in the loss and not in an embedding.
    token = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return token.squeeze(-1).clamp(max=log_probs.shape[-1] - 1)
