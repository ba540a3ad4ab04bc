"""Completions stacked, concatenated and padded."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alignrun.types import Completions


def stack(samples: Sequence[Completions]) -> Completions:
    """Stack K samples [B, T] of one length into [B, K, T]."""
    return _joined(samples, lambda parts: torch.stack(parts, 1))


def concatenate(parts: Sequence[Completions], dim: int = 0) -> Completions:
    """Concatenate completions of one length along a dimension."""
    return _joined(parts, lambda tensors: torch.cat(tensors, dim))


def consecutive(groups: Sequence[list[Completions]], pad_id: int) -> list[Completions]:
    """The streams of several groups of prompts as one group, each padded to the longest."""
    if len(groups) == 1:
        return groups[0]
    longest = max(group[0].tokens.shape[1] for group in groups)
    padded = [[pad_completions(one, longest, pad_id) for one in group] for group in groups]
    return [concatenate(parts) for parts in zip(*padded, strict=True)]


def pad_completions(completions: Completions, length: int, pad_id: int) -> Completions:
    """Pad completions to `length` tokens."""
    extra = (0, length - completions.tokens.shape[-1])
    return Completions(
        F.pad(completions.tokens, extra, value=pad_id),
        F.pad(completions.mask, extra, value=False),
        None if completions.drawn_with is None else F.pad(completions.drawn_with, extra),
    )


def _joined(several: Sequence[Completions], join: Callable[[list[Tensor]], Tensor]) -> Completions:
    """Completions joined by field; with a server's log-probabilities if all of them have some."""
    drawn_with = [one.drawn_with for one in several if one.drawn_with is not None]
    return Completions(
        join([one.tokens for one in several]),
        join([one.mask for one in several]),
        join(drawn_with) if len(drawn_with) == len(several) else None,
    )
