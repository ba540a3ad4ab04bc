"""LoRA adapters on the base, and the routing of batch rows through adapters."""

import hashlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from alignrun.config import AdapterConfig, AdapterKind, Precision
from alignrun.errors import InputError, one_line
from alignrun.models.adapter_fields import WEIGHTS_FILE, check_adapter
from alignrun.models.quantization import bits_and_bytes
from alignrun.models.targets import ALL_LINEAR, default_targets, not_linear

POLICY = "policy"
"""The trained adapter."""
REFERENCE = "reference"
"""The frozen adapter of the reference, if the reference is not the bare base."""
OPPONENT = "opponent"
"""The adapter of the frozen opponent of a best response."""
FEEDBACK = "feedback"
"""The adapter of a reward or preference model."""
VALUE = "value"
"""The adapter of the value function, trained next to the policy's."""

MIXED_ROWS = (
    "this architecture does not keep a batch's rows apart inside its layers (a mixture of experts?): "
    "name attention layers only in adapter.target_modules"
)
Span = tuple[str, slice]
"""An adapter's name and the rows of the batch that go through it."""
Forward = Callable[[Tensor], Tensor]
"""A layer's forward function on inputs [R, ..., N]."""


def add_adapter(model: PreTrainedModel | PeftModel, name: str, config: AdapterConfig) -> PeftModel:
    """Add a trainable LoRA adapter with zero product, so that it starts as the base, and activate it.

    Raises:
        InputError: the target modules do not exist in this model, or are not linear layers.
    """
    targets: str | list[str] = list(config.target_modules)
    if targets == [ALL_LINEAR]:
        targets = default_targets(model)
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM")
    try:
        if isinstance(model, PeftModel):
            peft = model
            peft.add_adapter(name, lora)
        else:
            peft = get_peft_model(model, lora, adapter_name=name)
        unfit = not_linear(peft, name)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        unfit = one_line(error, 120)
    if unfit is not None:
        known = default_targets(model)
        names = [key for key, layer in model.named_modules() if isinstance(layer, nn.Linear) and ".lora_" not in key]
        linear = sorted({key.split(".")[-1] for key in (names if known == ALL_LINEAR else known)} - {"base_layer"})
        raise InputError(
            f"adapter.target_modules={list(config.target_modules)} does not fit this model ({unfit}): only linear "
            f"layers can be adapted, not embeddings, experts or routers: use all-linear or some of {', '.join(linear)}"
        )
    peft.set_adapter(name)
    return peft


@torch.no_grad()
def copy_adapter(peft: PeftModel, source: str, name: str) -> None:
    """Add a frozen copy of an adapter under another name; the active adapter does not change."""
    active = peft.active_adapter
    peft.add_adapter(name, peft.peft_config[source])
    for layer in lora_layers(peft):
        for factors in (layer.lora_A, layer.lora_B):
            if source in factors:
                factors[name].weight.copy_(factors[source].weight)
                factors[name].requires_grad_(False)
    peft.set_adapter(active)


def read_adapter(
    model: PreTrainedModel | PeftModel, name: str, folder: Path, *, trainable: bool, key: str
) -> PeftModel:
    """Load an adapter from a PEFT folder under the given name; a trainable one is activated.

    Args:
        model: the base, with adapters on it or without.
        name: the adapter's name.
        folder: holds adapter_config.json and adapter_model.safetensors.
        trainable: whether its weights require gradients.
        key: the configuration key that named the folder, for messages.

    Raises:
        InputError: `check_adapter` rejects the folder, or the adapter does not fit this base.
    """
    check_adapter(folder, key)
    active = model.active_adapter if isinstance(model, PeftModel) else name
    trained = isinstance(model, PeftModel) and any(weight.requires_grad for weight in model.parameters())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # `_check_weights` looks for them
            if isinstance(model, PeftModel):
                peft = model
                peft.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
            else:
                peft = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=trainable)
        unfit = not_linear(peft, name)
        if unfit is None:
            _check_weights(peft, name, folder)
    except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise InputError(
            f"{key}: {folder} does not fit this base model ({one_line(error, 160)}): "
            "use the base that the adapter was trained on"
        ) from None
    if unfit is not None:
        raise InputError(
            f"{key}: {folder} adapts {unfit}, and only linear layers are supported: merge it into its base with PEFT's "
            "merge_and_unload, and use model=path model.path=DIR"
        )
    # Always set it: layers that only the new adapter has must know which adapter is active.
    peft.set_adapter(name if trainable else active, inference_mode=not (trainable or trained))
    return peft


def _check_weights(peft: PeftModel, name: str, folder: Path) -> None:
    """Check that exactly the stored weights were loaded. Raises ValueError."""
    stored = load_file(folder / WEIGHTS_FILE)
    digests = sorted(_digest(weight) for weight in stored.values())
    loaded = [
        factors[name].weight
        for layer in lora_layers(peft)
        for factors in (layer.lora_A, layer.lora_B)
        if name in factors
    ]
    if len(stored) != len(loaded):
        raise ValueError(f"{len(stored)} weights are stored and {len(loaded)} belong to its target_modules")
    if digests != sorted(_digest(weight) for weight in loaded):
        raise ValueError("its weights have other names than the layers of this model")


def _digest(weight: Tensor) -> str:
    return hashlib.sha256(weight.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def quantization(config: AdapterConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """The quantisation of the base at load time: 4-bit NormalFloat for QLoRA, None otherwise.

    Raises:
        InputError: QLoRA without CUDA or without bitsandbytes.
    """
    if config.name is not AdapterKind.qlora:
        return None
    if device.type != "cuda":
        raise InputError(f"adapter=qlora needs a CUDA GPU and this run is on {device.type}: use adapter=lora")
    return bits_and_bytes(4, dtype, "adapter=qlora")


def products_dtype(config: AdapterConfig, base: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision of low-rank products on a base of this dtype."""
    if config.compute_dtype is not Precision.auto:
        dtype: torch.dtype = getattr(torch, config.compute_dtype.value)
        return dtype
    return torch.bfloat16 if base is torch.bfloat16 and device.type == "cuda" else torch.float32


def compute_in(layers: Sequence[LoraLayer], dtype: torch.dtype) -> None:
    """Let the layers compute their low-rank products in this precision; their weights stay float32."""
    for layer in layers:
        vars(layer)["products"] = dtype


def computed_in(layers: Sequence[LoraLayer]) -> torch.dtype:
    """The precision of the layers' low-rank products."""
    dtype: torch.dtype = vars(layers[0]).get("products", torch.float32) if layers else torch.float32
    return dtype


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """All layers of the model that carry adapters."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def fingerprint(layers: Sequence[LoraLayer], name: str) -> str:
    """A digest of one adapter's weights and scaling."""
    digest = hashlib.sha256()
    for layer in layers:
        if name in layer.lora_A:
            digest.update(str(layer.scaling[name]).encode())
            for factor in (layer.lora_A[name], layer.lora_B[name]):
                digest.update(factor.weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def apply_active(layers: Sequence[LoraLayer]) -> None:
    """Route all rows through the active adapter, computed as in `one_adapter` instead of by PEFT.

    This avoids PEFT's float32 copy of every layer's input until the backward pass, and makes scoring and training
    bitwise the same function.
    """
    for layer in layers:
        layer.forward = partial(_forward_active, weakref.ref(layer))  # a strong reference would keep the base alive


def one_adapter(layers: Sequence[LoraLayer], adapter: str | None) -> AbstractContextManager[None]:
    """Within the context, route all rows through one adapter with its gradient, or through the bare base.

    Args:
        layers: from `lora_layers`, after `apply_active`.
        adapter: its name; None is the bare base.
    """
    return forwards_as(layers, [partial(_forward, layer, adapter) for layer in layers])


def forwards_on_rows(layers: Sequence[LoraLayer], spans: Sequence[Span], rows: int) -> list[Forward]:
    """Forward functions for `forwards_as` that route each span of rows through its adapter, without gradients.

    All other rows go through the bare base. The base product is computed once for all rows; only the low-rank products
    differ. PEFT's equivalent (`adapter_names`) installs hooks on every layer in every forward pass and gathers rows by
    index; contiguous spans need neither.

    Args:
        layers: from `lora_layers`, after `apply_active`.
        spans: disjoint spans; an empty sequence means the bare base.
        rows: the batch size, to detect architectures that reorder rows inside a layer.
    """
    return [_forward_by_span(layer, spans, rows) for layer in layers]


@contextmanager
def forwards_as(layers: Sequence[LoraLayer], forwards: Sequence[Forward]) -> Iterator[None]:
    """Within the context, the layers use the given forward functions."""
    usual = [layer.forward for layer in layers]
    try:
        for layer, forward in zip(layers, forwards, strict=True):
            vars(layer)["forward"] = forward  # bypass Module.__setattr__, which is slow per decoded token
        yield
    finally:
        for layer, forward in zip(layers, usual, strict=True):
            vars(layer)["forward"] = forward


def _forward_active(owner: "weakref.ref[LoraLayer]", x: Tensor) -> Tensor:
    layer = owner()
    assert layer is not None
    (adapter,) = layer.active_adapters
    return _forward(layer, adapter, x)


def _forward(layer: LoraLayer, adapter: str | None, x: Tensor) -> Tensor:
    result: Tensor = layer.base_layer(x)
    if adapter not in layer.lora_A:
        return result
    dtype = vars(layer).get("products", torch.float32)
    # Copies for one pass, with their gradients: of r·(N + M) elements, where the products read T·(N + M).
    a, b = layer.lora_A[adapter].weight.to(dtype), layer.lora_B[adapter].weight.to(dtype)
    product: Tensor = _LowRankProduct.apply(x, a, b, layer.scaling[adapter])  # type: ignore[no-untyped-call]
    if type(layer.base_layer) is nn.Linear:
        return result.add_(product)
    return result + product  # a quantised layer may return a view that must not be modified


def _forward_by_span(layer: LoraLayer, spans: Sequence[Span], rows: int) -> Forward:
    """The layer's forward function for mixed rows, equal to `_forward` up to rounding.

    Decoding has few rows per step, so everything is looked up in advance.
    """
    base = layer.base_layer
    factors = [
        (span, layer.lora_A[adapter].weight.T, layer.lora_B[adapter].weight.T, layer.scaling[adapter])
        for adapter, span in spans
        if adapter in layer.lora_A
    ]

    def forward(x: Tensor) -> Tensor:
        result: Tensor = base(x)
        if factors and len(x) != rows:
            raise InputError(MIXED_ROWS)
        for span, a, b, scaling in factors:
            rows_in, rows_out = x[span].flatten(0, -2), result[span].view(-1, result.shape[-1])
            narrow = torch.mm(rows_in.to(a.dtype), a)
            if result.dtype is b.dtype:
                rows_out.addmm_(narrow, b, alpha=scaling)
            else:
                rows_out.add_((narrow * scaling) @ b)
        return result

    return forward


class _LowRankProduct(torch.autograd.Function):
    """s·x Aᵀ Bᵀ in the precision of A and B, rounded to that of x. Shapes: x [..., N], A [r, N], B [M, r].

    It saves x itself for the backward pass, so layers with a common input share one copy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        narrow = F.linear(x.to(a.dtype), a) * scaling  # scale here: the rank is smaller than the output
        ctx.save_for_backward(x, a, b, narrow)
        ctx.scaling = scaling
        return F.linear(narrow, b).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, narrow = ctx.saved_tensors
        grad = grad.to(b.dtype)
        back = F.linear(grad, b.T) * ctx.scaling
        to_x, to_a, to_b = ctx.needs_input_grad[:3]
        return (
            F.linear(back, a.T).to(x.dtype) if to_x else None,
            back.flatten(0, -2).T @ x.flatten(0, -2).to(a.dtype) if to_a else None,
            grad.flatten(0, -2).T @ narrow.flatten(0, -2) if to_b else None,
            None,
        )
