"""Decoding steps of fixed shape, recorded once as a CUDA graph and replayed with one launch per token.

Shape legend: R rows, C capacity in tokens, H heads, D head size, V vocabulary.
"""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import StaticLayer

from alignrun.errors import RunError, one_line
from alignrun.models.decoding.cache import GrowingCacheLayer, plain_attention

Forward = Callable[[Tensor, Tensor | None, Tensor | None, Cache], Tensor]
"""Token ids [R, 1], mask [R, 1, 1, C], positions [R, 1] and the cache, to logits [R, V]."""


def can_replay(model: PreTrainedModel, cache: Cache) -> bool:
    """Whether a step of this model does the same work for every token.

    This needs full attention, a kernel with a mask, and rotary frequencies that do not depend on the length.
    """
    growing = all(type(layer) is GrowingCacheLayer for layer in cache.layers)
    return growing and not why_not_recorded(model.config, model.config._attn_implementation)


def why_not_recorded(architecture: PreTrainedConfig, attention: str) -> str:
    """Why steps of an architecture cannot be recorded; empty where they can."""
    if attention != "sdpa":
        return f"attention={attention} has no kernel with a mask of fixed shape"
    if not plain_attention(architecture):
        return "not every layer attends to all previous tokens"
    rope = getattr(architecture.get_text_config(), "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        return f"rotary frequencies of type {kind} depend on the length"
    return ""


class ReplayedSteps:
    """Decoding steps for fixed rows, with keys and values in static buffers [R, H, C, D].

    The first step runs eagerly, which is also the warm-up for recording. The second is recorded and then replayed. On a
    CPU all steps run eagerly. Adapters are fixed by the first two calls. In-place changes of weights take effect from
    the next call.
    """

    def __init__(self, cache: Cache, mask: Tensor, capacity: int) -> None:
        """Take over the keys and values of a cache, and empty it.

        Args:
            cache: the cache of the tokens so far, for which `can_replay` holds.
            mask: [R, T] bool, false on padding.
            capacity: C, the largest number of tokens in a row.
        """
        rows, read = mask.shape
        self._cache = Cache(layers=[_fixed(layer, capacity) for layer in cache.layers])
        self._mask = mask.new_zeros(rows, 1, 1, capacity, dtype=torch.bool)
        self._mask[:, 0, 0, :read] = mask.bool()
        self._slot = torch.tensor([read], device=mask.device)
        self._positions = mask.sum(1, keepdim=True)
        self._tokens = torch.zeros_like(self._positions)
        self._warm = False
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
        if tokens.device.type != "cuda":
            return self._step(forward)
        if not self._warm:
            self._warm = True
            return self._beside(self._step, forward)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            self._logits = self._beside(self._record, forward)
        self._graph.replay()
        return self._logits

    def select(self, index: Tensor) -> None:
        """Keep (or repeat) the given rows, possibly none; the step is recorded again."""
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        self._mask, self._positions = self._mask[index], self._positions[index]
        self._tokens = torch.zeros_like(self._positions)
        self._warm, self._graph = False, None

    def _step(self, forward: Forward) -> Tensor:
        """Run one step; all state that changes per token lives on the device and advances there."""
        self._mask.index_fill_(3, self._slot, True)
        logits = forward(self._tokens, self._mask, self._positions, self._cache)
        self._slot += 1
        self._positions += 1
        return logits

    def _record(self, forward: Forward) -> Tensor:
        assert self._graph is not None
        # Other threads, such as a tracker's, may use the device meanwhile.
        self._graph.capture_begin(capture_error_mode="thread_local")
        try:
            logits = self._step(forward)
            self._graph.capture_end()
        except RuntimeError as error:
            with suppress(RuntimeError):  # it only reports the earlier error
                self._graph.capture_end()
            if isinstance(error, torch.OutOfMemoryError):  # fewer rows may fit
                raise
            raise RunError(
                f"this model's decoding step cannot be recorded as a CUDA graph ({one_line(error, 160)}): "
                "set model.cuda_graphs=false"
            ) from error
        return logits

    @staticmethod
    def _beside(work: Callable[[Forward], Tensor], forward: Forward) -> Tensor:
        """Run on a side stream, as recording requires."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = work(forward)
        current.wait_stream(side)
        return result


def _fixed(layer: GrowingCacheLayer, capacity: int) -> StaticLayer:
    """Move a layer's keys and values into static buffers for `capacity` tokens."""
    fixed, read = StaticLayer(capacity), layer.get_seq_length()
    for name, states in (("keys", layer.keys), ("values", layer.values)):
        buffer = states.new_zeros(*states.shape[:2], capacity, states.shape[3])
        buffer[:, :, :read] = states
        setattr(fixed, name, buffer)
    # Set by hand: the layer's own initialisation would import torch's compiler.
    fixed.device = layer.keys.device
    fixed.cumulative_length = torch.tensor(read, device=fixed.device)
    fixed.is_initialized = True
    layer.release()
    return fixed
