"""Decoding steps of fixed shape, recorded as CUDA graphs and replayed with one launch per token.

A recording attends to a prefix of the buffers, in steps of `BUCKET` tokens, so that a short text does not read the room
of a long one; the next step beyond it is recorded again, in the same memory pool.

Shape legend: R rows, C capacity in tokens, U tokens of the prefix, H heads, D head size, V vocabulary.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import StaticLayer

from alignrun.errors import RunError, one_line
from alignrun.models.decoding.cache import GrowingCacheLayer, plain_attention, window

BUCKET = 128
"""Tokens by which the prefix grows. A recording takes about as long as two steps without one."""
ALIGNED = 16
"""Kernels read masks of a multiple of so many tokens without copying them."""

Forward = Callable[[Tensor, Tensor | None, Tensor | None, Cache], Tensor]
"""Token ids [R, 1], additive mask [R, 1, 1, U], positions [R, 1] and the cache, to logits [R, V]."""


def can_replay(model: PreTrainedModel, cache: Cache) -> bool:
    """Whether a step of this model with this cache does the same work for every token."""
    growing = all(type(layer) is GrowingCacheLayer for layer in cache.layers)
    return growing and not why_not_recorded(model.config, model.config._attn_implementation)


def why_not_recorded(config: PreTrainedConfig, attention: str, tokens: int | None = None) -> str:
    """Why steps of an architecture cannot be recorded; empty where they can.

    This needs attention over all previous tokens, a kernel with a mask, and rotary frequencies that do not depend on
    the length. A sliding window must hold so many tokens.
    """
    if attention != "sdpa":
        return f"attention={attention} has no kernel with a mask of fixed shape"
    shortest = window(config)
    if not plain_attention(config) and shortest is None:
        return "not every layer attends to all previous tokens"
    if shortest is not None and tokens is not None and tokens > shortest:
        return f"the sliding window of {shortest} tokens is shorter than a prompt and its completion"
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {one.get("rope_type", "default") for one in (rope, *rope.values()) if isinstance(one, dict)}
    if unlike := kinds - {"default", "linear", "llama3", "yarn"}:
        return f"rotary frequencies of type {min(unlike)} depend on the length"
    return ""


class PrefixLayer(StaticLayer):  # type: ignore[misc]
    """Keys and values in static buffers [R, H, C, D], of which attention reads the first U tokens."""

    def __init__(self, layer: GrowingCacheLayer, capacity: int, slot: Tensor) -> None:
        """Move a layer's keys and values into static buffers for `capacity` tokens, and empty it.

        `slot` [1] is the place of the next token; all layers share it, and its owner advances it.
        """
        super().__init__(capacity)
        self.keys: Tensor
        self.values: Tensor
        self.slot, self.used = slot, capacity
        read = layer.get_seq_length()
        for name, states in (("keys", layer.keys), ("values", layer.values)):
            buffer = states.new_zeros(*states.shape[:2], capacity, states.shape[3])
            buffer[:, :, :read] = states
            setattr(self, name, buffer)
        # Set by hand: the layer's own initialisation would import torch's compiler.
        self.device, self.is_initialized = layer.keys.device, True
        layer.release()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values of one token, and return those of the prefix."""
        self.keys.index_copy_(2, self.slot, key_states)
        self.values.index_copy_(2, self.slot, value_states)
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def get_seq_length(self) -> Tensor:
        """The tokens so far, on the device."""
        return self.slot

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep (or repeat) the given rows."""
        self.keys, self.values = self.keys[indices], self.values[indices]


class ReplayedSteps:
    """Decoding steps for fixed rows, with keys and values in static buffers [R, H, C, D].

    The first step of each prefix runs eagerly, which is also the warm-up for recording. The second is recorded and then
    replayed. On a CPU all steps run eagerly. Adapters are fixed by the first two calls of a prefix. In-place changes of
    weights take effect from the next call.
    """

    def __init__(self, cache: Cache, mask: Tensor, capacity: int) -> None:
        """Take over the keys and values of a cache, and empty it.

        Args:
            cache: the cache of the tokens so far, for which `can_replay` holds.
            mask: [R, T] bool, false on padding.
            capacity: the largest number of tokens in a row; C is the next multiple of `ALIGNED`.
        """
        rows, self._read = mask.shape
        dtype = cache.layers[0].keys.dtype
        capacity = -(-capacity // ALIGNED) * ALIGNED
        self._slot = torch.tensor([self._read], device=mask.device)
        self._layers = [PrefixLayer(layer, capacity, self._slot) for layer in cache.layers]
        self._cache = Cache(layers=self._layers)
        # Added to the scores as it is: every layer would make one from a mask of bools.
        self._mask = torch.full((rows, 1, 1, capacity), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
        self._mask[:, 0, 0, : self._read].masked_fill_(mask.bool(), 0)
        self._positions = mask.sum(1, keepdim=True)
        self._tokens = torch.zeros_like(self._positions)
        self._used = 0
        self._warm = self._recorded = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    def __call__(self, tokens: Tensor, forward: Forward) -> Tensor:
        """Append one token [R] to each row; return [R, V] logits of the next, which the next call overwrites.

        `forward` is the model's pass over one token per row. It is not stored, to avoid a reference cycle that would
        keep the buffers until garbage collection.

        Raises:
            RunError: this model's step cannot be recorded.
        """
        self._tokens.copy_(tokens[:, None])
        self._read += 1
        self._attend_to(min(-(-self._read // BUCKET) * BUCKET, self._mask.shape[3]))
        if tokens.device.type != "cuda":
            return self._step(forward)
        if not self._warm:
            self._warm = True
            return self._on_side_stream(self._step, forward)
        if not self._recorded:
            self._logits = self._on_side_stream(self._record, forward)
            self._recorded = True
        assert self._graph is not None
        self._graph.replay()
        return self._logits

    def select(self, index: Tensor) -> None:
        """Keep (or repeat) the given rows, possibly none; the step is recorded again."""
        for layer in self._layers:
            layer.batch_select_indices(index)
        self._mask, self._positions = self._mask[index], self._positions[index]
        self._tokens = torch.zeros_like(self._positions)
        self._warm = self._recorded = False

    def _attend_to(self, used: int) -> None:
        """Let attention read so many tokens; a change is recorded again."""
        if used != self._used:
            self._used = used
            for layer in self._layers:
                layer.used = used
            self._warm = self._recorded = False

    def _step(self, forward: Forward) -> Tensor:
        """Run one step; all state that changes per token lives on the device and advances there."""
        self._mask.index_fill_(3, self._slot, 0)
        logits = forward(self._tokens, self._mask[..., : self._used], self._positions, self._cache)
        self._slot += 1
        self._positions += 1
        return logits

    def _record(self, forward: Forward) -> Tensor:
        """Record a step in the memory of the recording before it, which is replaced only then: it keeps that alive."""
        graph = torch.cuda.CUDAGraph()
        pool = None if self._graph is None else self._graph.pool()
        # Other threads, such as a tracker's, may use the device meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            logits = self._step(forward)
            graph.capture_end()
        except RuntimeError as error:
            with suppress(RuntimeError):  # it only reports the earlier error
                graph.capture_end()
            if isinstance(error, torch.OutOfMemoryError):  # fewer rows may fit
                raise
            raise RunError(
                f"this model's decoding step cannot be recorded as a CUDA graph ({one_line(error, 160)}): "
                "set model.cuda_graphs=false"
            ) from error
        self._graph = graph
        return logits

    @staticmethod
    def _on_side_stream(work: Callable[[Forward], Tensor], forward: Forward) -> Tensor:
        """Run on the side stream, as recording requires."""
        current = torch.cuda.current_stream()
        side = _side_stream(current.device_index)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = work(forward)
        current.wait_stream(side)
        return result


@cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The stream of all recordings on a device: a library's workspace belongs to a stream, and is made once."""
    return torch.cuda.Stream(device)
