"""A key-value cache with preallocated capacity.

Shape legend: R rows, H heads, T tokens so far, D head size.
"""

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

ROOM = 64
"""Spare tokens in a new buffer, or a quarter of its tokens if that is more."""


class GrowingCacheLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values as a prefix [R, H, T, D] of larger buffers; without gradients.

    The layer of transformers copies everything for every new token, T²/2 tokens in total.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keys: Tensor
        self.values: Tensor
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, and return all of them."""
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
        """Keep only the given rows."""
        super().batch_select_indices(indices)
        self._buffers = []

    def release(self) -> None:
        """Free all keys and values."""
        self.keys, self.values, self._buffers = self.keys[:0], self.values[:0], []


def plain_attention(config: PreTrainedConfig) -> bool:
    """Whether every layer is full causal attention: no sliding window, no recurrent state, no distance bias."""
    alibi = getattr(config.get_text_config(), "alibi", False)
    return not alibi and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def window(config: PreTrainedConfig) -> int | None:
    """The shortest sliding window of a model whose other layers attend to all tokens; None where there is more."""
    layers = DynamicCache(config=config).layers
    windows = [layer.sliding_window for layer in layers if type(layer) is DynamicSlidingWindowLayer]
    full = sum(type(layer) is DynamicLayer for layer in layers)
    return min(windows) if windows and len(windows) + full == len(layers) else None


def recurrent(config: PreTrainedConfig) -> bool:
    """Whether some layer has a recurrent state that is updated in place, as in Mamba, which blocks gradients."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=config).layers)


def attends(cache: Cache) -> bool:
    """Whether some layer attends to previous tokens, so that a step needs a mask."""
    return any(isinstance(layer, DynamicLayer) for layer in cache.layers)


def select_rows(cache: Cache, index: Tensor) -> None:
    """Keep (or repeat) the given rows of keys, values and states."""
    for layer in cache.layers:
        # transformers 5.24 selects rows of a state only in the method for beam search.
        stateful = isinstance(layer, LinearAttentionCacheLayerMixin)
        (layer.reorder_cache if stateful else layer.batch_select_indices)(index)


class PassingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that stores nothing: every pass sees only its own keys and values."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the given keys and values."""
        return key_states, value_states


def passing_cache(config: PreTrainedConfig) -> DynamicCache:
    """A cache that stores nothing, for texts without padding.

    Without a cache, transformers synchronises with the device to check positions for packed texts.
    """
    cache = DynamicCache(config=config)
    cache.layers = [PassingLayer() for _ in cache.layers]
    return cache


def _roomy(tokens: int) -> int:
    return tokens + max(ROOM, tokens // 4)


def capacity(prompt_tokens: int, new_tokens: int) -> int:
    """The capacity of the buffers after appending `new_tokens` one by one to a prompt."""
    room = prompt_tokens
    while room < prompt_tokens + new_tokens - 1:  # the last token is never fed back
        room = _roomy(room + 1)
    return room


def decoding_cache(config: PreTrainedConfig, tokens: int | None = None) -> DynamicCache:
    """A cache for decoding without gradients; sliding-window and recurrent layers are those of transformers.

    A window that holds all of at most `tokens` tokens never slides, and its layer is one as the others.
    """
    cache = DynamicCache(config=config)
    cache.layers = [GrowingCacheLayer() if _keeps_all(layer, tokens) else layer for layer in cache.layers]
    return cache


def _keeps_all(layer: CacheLayerMixin, tokens: int | None) -> bool:
    if type(layer) is DynamicSlidingWindowLayer:
        return tokens is not None and tokens <= layer.sliding_window
    return type(layer) is DynamicLayer
