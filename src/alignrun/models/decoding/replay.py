"""Decoding steps of fixed shapes, recorded once as a CUDA graph and replayed: one launch for a token, not thousands.

Shape legend: R rows, C tokens that there is room for, H heads, D head size, V vocabulary.
"""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import StaticLayer

from alignrun.errors import RunError, one_line
from alignrun.models.decoding.cache import GrowingCacheLayer, plain_attention

Forward = Callable[[Tensor, Tensor | None, Tensor | None, Cache], Tensor]
"""Token ids [R, 1], mask [R, 1, 1, C], positions [R, 1] and the cache, to logits [R, V]."""


def can_replay(model: PreTrainedModel, cache: Cache) -> bool:
    """Whether a step of this model is the same work for every token: attention to all tokens before, by a kernel that
    takes a mask, with rotary frequencies that do not depend on the length."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    return (
        model.config._attn_implementation == "sdpa"
        and plain_attention(model.config)
        and all(type(layer) is GrowingCacheLayer for layer in cache.layers)
        and rope.get("rope_type", "default") in ("default", "linear", "llama3", "yarn")
    )


class ReplayedSteps:
    """Steps of rows that stay the same, with keys and values in buffers [R, H, C, D] that never move.

    The first step runs as it is, which is also the warm-up that recording needs; the second is recorded, and from
    then on replayed. On a CPU, where nothing can be recorded, all run as they are. The rows' adapters are those of
    the first two calls, and what is written into the weights in place counts from the next call on.
    """

    def __init__(self, cache: Cache, mask: Tensor, capacity: int) -> None:
        """Take over the keys and values of a cache; it is emptied.

        Args:
            cache: of the tokens so far, in layers for which `can_replay` holds.
            mask: [R, T] bool, which of the tokens so far are real.
            capacity: C, the tokens that a row will have at most.
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
        """Append one token [R] to each row; [R, V] logits of the next, which the next call overwrites.

        `forward` is the model's pass over one token a row. It is not kept: whose method it is would keep these
        buffers, and they it, until the garbage collector comes by.

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
        """Keep (or repeat) the rows of the given numbers, which may be none; the step is recorded anew."""
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]
        self._mask, self._positions = self._mask[index], self._positions[index]
        self._tokens = torch.zeros_like(self._positions)
        self._warm, self._graph = False, None

    def _step(self, forward: Forward) -> Tensor:
        """All that depends on which token it is lives on the device and moves on by itself."""
        self._mask.index_fill_(3, self._slot, True)
        logits = forward(self._tokens, self._mask, self._positions, self._cache)
        self._slot += 1
        self._positions += 1
        return logits

    def _record(self, forward: Forward) -> Tensor:
        assert self._graph is not None
        # Other threads, such as a tracker's, may go on using the device meanwhile.
        self._graph.capture_begin(capture_error_mode="thread_local")
        try:
            logits = self._step(forward)
            self._graph.capture_end()
        except RuntimeError as error:
            with suppress(RuntimeError):  # it says only that something went wrong before
                self._graph.capture_end()
            raise RunError(
                f"this model's decoding step cannot be recorded as a CUDA graph ({one_line(error, 160)}): "
                "set model.cuda_graphs=false"
            ) from error
        return logits

    @staticmethod
    def _beside(work: Callable[[Forward], Tensor], forward: Forward) -> Tensor:
        """On a stream of its own, as recording demands."""
        current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            result = work(forward)
        current.wait_stream(beside)
        return result


def _fixed(layer: GrowingCacheLayer, capacity: int) -> StaticLayer:
    """The same keys and values in buffers for `capacity` tokens; the layer lets go of its own."""
    fixed, read = StaticLayer(capacity), layer.get_seq_length()
    for name, states in (("keys", layer.keys), ("values", layer.values)):
        buffer = states.new_zeros(*states.shape[:2], capacity, states.shape[3])
        buffer[:, :, :read] = states
        setattr(fixed, name, buffer)
    # What its own initialisation does too, which would import all of torch's compiler.
    fixed.device = layer.keys.device
    fixed.cumulative_length = torch.tensor(read, device=fixed.device)
    fixed.is_initialized = True
    layer.release()
    return fixed
