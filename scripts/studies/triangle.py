"""Policies of three actions as points of a triangle."""

from collections.abc import Sequence

import torch
from torch import Tensor


def placed(policies: Sequence[Tensor]) -> Tensor:
    """Points of the triangle with the corners a (left), b (right) and c (top). [steps, 3] -> [steps, 2]."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    return torch.stack(list(policies)).double() @ corners
