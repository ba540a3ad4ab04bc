"""The log-probabilities of a source: a role, or the token-wise geometric mixture of two."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignrun.errors import InputError
from alignrun.generation.streams import Mixture, Source


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def mix_log_probs(policy_logits: Tensor, reference_logits: Tensor, mix_beta: float) -> Tensor:
    """The mixture's log-probabilities: log softmax((1−β) log π + β log μ), β in [0, 1]. arXiv 2312.00886.

    The token-wise mixture differs from the mixture over whole sequences. Temperature and truncation apply after it. At
    β = 0 and β = 1 it is exactly the log-softmax of one side.

    Shapes: both logits and the result [..., V]; the result is float32 (float64 for float64 logits). Raises InputError.
    """
    if not 0 <= mix_beta <= 1:
        raise InputError(f"mix_beta must lie in [0, 1], not {mix_beta}")
    # Return early at the ends: the result is exact, and 0·(−∞) would turn masked tokens into NaN.
    if mix_beta == 0:
        return _log_softmax(policy_logits)
    if mix_beta == 1:
        return _log_softmax(reference_logits)
    mixed = (1 - mix_beta) * _log_softmax(policy_logits) + mix_beta * _log_softmax(reference_logits)
    return torch.log_softmax(mixed, dim=-1)


def source_log_probs(source: Source, logits: Sequence[Tensor]) -> Tensor:
    """[..., V] log-probabilities of a source before temperature and truncation, from logits of `roles_of(source)`."""
    if isinstance(source, Mixture) and len(logits) == 2:
        first, second = logits
        return mix_log_probs(first, second, source.beta)
    return _log_softmax(logits[0])
