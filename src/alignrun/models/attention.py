"""Attention in half precision on a CPU, where torch's fused kernel is slow.

Shape legend: R rows, H query heads, G key heads, S queries, T keys, D head size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def install() -> None:
    """Use `attend` for the models of this process that ask transformers for sdpa attention."""
    AttentionInterface.register("sdpa", attend)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """[R, S, H, D] softmax(q·kᵀ·scaling)·v, as transformers' function for sdpa.

    Several queries of a row: in float32, whose backward pass takes a third of the time. One query: with a mask,
    transformers makes the heads that share a key the queries of one product, which reads keys once and not H/G times.

    Shapes: query [R, H, S, D], key and value [R, G, T, D].
    """
    # A memory plan's tensors pretend to be on a CPU, and it may be for a GPU.
    if type(query) is not Tensor or query.device.type != "cpu" or query.element_size() != 2:
        attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return attended
    dtype = query.dtype
    if query.shape[2] > 1:
        query, key, value = query.float(), key.float(), value.float()
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
    elif attention_mask is None:
        attention_mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return output.to(dtype), None
