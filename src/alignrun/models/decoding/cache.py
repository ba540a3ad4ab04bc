"""A key-value cache with room to grow.

Shape legend: R rows, H heads, T tokens so far, D head size.
"""

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

ROOM = 64
"""Tokens that a new buffer has room for beyond those it must hold; a quarter of them where that is more."""


class GrowingCacheLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values as the front [R, H, T, D] of larger buffers; without gradients.

    transformers' own layer copies them all for every new token, and so copies T²/2 tokens on the way to T.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keys: Tensor
        self.values: Tensor
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._buffers or self._buffers[0].shape[-2] < end:
            self._buffers = [states.new_empty(*states.shape[:2], _roomy(end), states.shape[3])
                             for states in (key_states, value_states)]  # fmt: skip
            if start:
                for buffer, front in zip(self._buffers, (self.keys, self.values), strict=True):
                    buffer[:, :, :start] = front
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only keep the given rows."""
        super().batch_select_indices(indices)
        self._buffers = []

    def release(self) -> None:
        """Let go of all keys and values."""
        self.keys, self.values, self._buffers = self.keys[:0], self.values[:0], []


def plain_attention(config: PreTrainedConfig) -> bool:
    """Whether every layer is attention to all tokens before, and a mask is all that it asks about them: none sees a
    window or keeps a state, and no bias depends on the distance."""
    alibi = getattr(config.get_text_config(), "alibi", False)
    return not alibi and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def recurrent(config: PreTrainedConfig) -> bool:
    """Whether some layer keeps a state that every token changes in place, as in Mamba: no gradient goes through it."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=config).layers)


def attends(cache: Cache) -> bool:
    """Whether some layer looks back at tokens, so that a step needs a mask of those before it."""
    return any(isinstance(layer, DynamicLayer) for layer in cache.layers)


def select_rows(cache: Cache, index: Tensor) -> None:
    """Keep (or repeat) the given rows of keys, values and states."""
    for layer in cache.layers:
        # transformers 5.24 selects rows of a state only under the name that beam search uses.
        stateful = isinstance(layer, LinearAttentionCacheLayerMixin)
        (layer.reorder_cache if stateful else layer.batch_select_indices)(index)


class PassingLayer(DynamicLayer):  # type: ignore[misc]
    """Holds nothing: every pass sees its own keys and values alone."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The same keys and values."""
        return key_states, value_states


def passing_cache(config: PreTrainedConfig) -> DynamicCache:
    """A cache that holds nothing, for texts without padding: where there is no cache at all, transformers looks at
    positions on the device, and waits for them, to see whether several texts are packed into a row."""
    cache = DynamicCache(config=config)
    cache.layers = [PassingLayer() for _ in cache.layers]
    return cache


def _roomy(tokens: int) -> int:
    return tokens + max(ROOM, tokens // 4)


def capacity(prompt_tokens: int, new_tokens: int) -> int:
    """Tokens that the buffers have room for once `new_tokens` have been appended one by one to a prompt."""
    room = prompt_tokens
    while room < prompt_tokens + new_tokens - 1:  # the last token is drawn and not read
        room = _roomy(room + 1)
    return room


def decoding_cache(config: PreTrainedConfig) -> DynamicCache:
    """A cache for decoding without gradients; layers that keep a window or a state are transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingCacheLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
