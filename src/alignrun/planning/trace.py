"""Peak memory of a training pass, traced on tensors with shapes but no data.

The pass runs the code of training: the same model, adapters, prompt sharing and vocabulary head, forward and backward.
Every storage counts from its allocation until it is freed. Shape legend: B prompts, K completions of each, T tokens.
"""

import contextlib
import copy
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from alignrun.config import AdapterConfig, AdapterKind
from alignrun.models.adapters import POLICY, add_adapter, apply_active, compute_in, lora_layers, products_dtype
from alignrun.models.head import vocabulary_head
from alignrun.models.hidden import hidden_states
from alignrun.objectives.likelihood import token_log_probs
from alignrun.types import PromptBatch

GROUPED = torch.ops.aten._grouped_mm.default

SHALLOW, DEEPER = 2, 4
"""Layers of the two traced models; each further layer costs the same at any depth."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass."""

    prompts: int
    """B"""
    completions: int
    """K"""
    prompt_tokens: int
    completion_tokens: int
    checkpointing: bool
    """Whether layers recompute their activations in the backward pass (gradient checkpointing)."""
    accumulating: bool
    """Whether the gradients of earlier micro-batches are already allocated."""
    vocabulary: bool = True
    """Whether the pass computes log-probabilities, or else a scalar per token."""
    split: bool = False
    """Whether gradients are split over processes: they are freed as soon as they are complete, and not counted."""


def training_peak(
    architecture: PreTrainedConfig, adapter: AdapterConfig, dtype: torch.dtype, attention: str, work: Pass
) -> int:
    """Peak bytes of the pass besides the weights: activations, gradients and chunks of the logits."""
    depth: int = architecture.get_text_config().num_hidden_layers
    if depth <= DEEPER:
        return _traced(architecture, depth, adapter, dtype, attention, work)
    shallow, deeper = (_traced(architecture, layers, adapter, dtype, attention, work) for layers in (SHALLOW, DEEPER))
    return deeper + (depth - DEEPER) * (deeper - shallow) // (DEEPER - SHALLOW)


def forward_peak(model: PreTrainedModel, rows: int, tokens: int) -> int:
    """Peak bytes besides the weights of a pass over rows of equal length that keeps nothing for a gradient.

    It does not depend on the number of layers, since each frees its tensors before the next one.
    """
    model.config.get_text_config().use_cache = False
    with _without_data(model), torch.no_grad():
        ids = torch.zeros(rows, tokens, dtype=torch.long)
        with _LiveBytes(model) as live:
            model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return int(live.peak)


@dataclass(frozen=True, slots=True)
class Kept:
    """Elements that a row keeps in the caches of all layers while it is decoded."""

    by_token: int
    """Keys and values per token."""
    state: int
    """Recurrent states, whose size does not depend on the number of tokens."""


def kept_in_cache(architecture: PreTrainedConfig) -> Kept:
    """Measured by a pass over one token; sliding windows count as if they kept all tokens."""
    with torch.device("meta"), torch.no_grad():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(architecture), dtype=torch.bfloat16)
        cache = DynamicCache(config=architecture)
        model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long), cache=cache, use_cache=True)
    by_token = state = 0
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer):
            by_token += layer.keys.numel() + layer.values.numel()
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            state += sum(one.numel() for one in tree_leaves(vars(layer)) if _is_state(layer, one))
    return Kept(by_token, state)


def _is_state(layer: Any, value: Any) -> bool:
    attended = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return isinstance(value, Tensor) and not any(value is one for one in attended)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, except the model's, until they are freed."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        weights = [*model.parameters(), *model.buffers()]
        self._sizes = {weight.untyped_storage()._cdata: 0 for weight in weights}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _grouped(args, kwargs or {}) if func is GROUPED else func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _grouped(args: Any, kwargs: Any) -> Tensor:
    """The grouped product of experts: torch infers its shape only in bfloat16, and it is the same in any precision."""
    rounded, options = (
        tree_map_only(Tensor, lambda one: one.bfloat16() if one.is_floating_point() else one, values)
        for values in (args, kwargs)
    )
    product: Tensor = GROUPED(*rounded, **options)
    return product.to(args[0].dtype)


def _traced(
    architecture: PreTrainedConfig, layers: int, adapter: AdapterConfig, dtype: torch.dtype, attention: str, work: Pass
) -> int:
    with torch.device("meta"):
        shape = with_layers(architecture, layers)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=attention)
        if adapter.name is not AdapterKind.none:
            add_adapter(model, POLICY, adapter)
            compute_in(lora_layers(model), products_dtype(adapter, dtype, torch.device("cpu")))
            apply_active(lora_layers(model))
    model.train(work.checkpointing)
    if work.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    with _without_data(model):
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        # A new gradient is added in place to the one that is there, and freed; of fake tensors autograd makes a third.
        for weight in trained if work.accumulating or work.split else ():
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
        with _LiveBytes(model) as live:
            _train(model, work)
        grown: int = sum(weight.nbytes for weight in trained if work.accumulating and not work.split)
    return int(live.peak + grown)


@contextlib.contextmanager
def _without_data(model: PreTrainedModel) -> Iterator[None]:
    """Within the context, a model on the meta device and all new tensors pretend to be on the CPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        empty_weights(model, "cpu")
        yield


def empty_weights(model: nn.Module, device: str) -> None:
    """Replace weights and buffers by uninitialised ones of the same shapes and dtypes on another device."""
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is None:
                continue
            if id(weight) not in made:
                empty = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                made[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
            module._parameters[name] = made[id(weight)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def _train(model: PreTrainedModel, work: Pass) -> None:
    ids = torch.zeros(work.prompts, work.prompt_tokens, dtype=torch.long)
    prompts = PromptBatch(texts=("",) * work.prompts, input_ids=ids, attention_mask=torch.ones_like(ids), padded=True)
    tokens = torch.zeros(work.prompts * work.completions, work.completion_tokens, dtype=torch.long)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    if work.vocabulary:
        hidden = hidden_states(model, prompts, tokens[:, :-1], mask[:, :-1])
        values = token_log_probs(hidden, vocabulary_head(model), tokens)
    else:
        values = hidden_states(model, prompts, tokens, mask).float().sum(-1)
    values.sum().backward()


def with_layers(architecture: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same architecture with at most this many layers."""
    shape = copy.deepcopy(architecture)
    text = shape.get_text_config()
    layers = min(layers, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        with contextlib.suppress(AttributeError):  # some configurations compute it from the number of layers
            text.layer_types = text.layer_types[:layers]
    text.num_hidden_layers = layers
    return shape
