"""LoRA adapters on the base, and which adapter each row of a batch goes through."""

import hashlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from alignrun.config import AdapterConfig, AdapterKind
from alignrun.errors import InputError, one_line

POLICY = "policy"
"""The adapter that is trained."""
REFERENCE = "reference"
"""A frozen adapter, where the reference is not the bare base."""
OPPONENT = "opponent"
"""The adapter of a frozen policy that a best response is trained against."""
FEEDBACK = "feedback"
"""The adapter of a reward or preference model."""
ANCHOR = "anchor"
"""A frozen copy of the policy as it was some steps ago."""
AVERAGE = "average"
"""The moving average of the policy."""
VALUE = "value"
"""The adapter of the value function, trained beside the policy's."""

Span = tuple[str, slice]
"""An adapter's name and the rows of the batch that go through it."""
Forward = Callable[[Tensor], Tensor]
"""What a layer does with its input [R, ..., N]."""


def add_adapter(model: PreTrainedModel | PeftModel, name: str, config: AdapterConfig) -> PeftModel:
    """A new trained LoRA adapter whose product is zero, so that it starts as the base; it becomes the active one.

    Raises:
        InputError: the target modules do not exist in this model.
    """
    targets: str | list[str] = list(config.target_modules)
    if targets == ["all-linear"]:
        targets = "all-linear"
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM")
    try:
        if isinstance(model, PeftModel):
            peft = model
            peft.add_adapter(name, lora)
        else:
            peft = get_peft_model(model, lora, adapter_name=name)
    except ValueError as error:
        linear = sorted({key.split(".")[-1] for key, layer in model.named_modules() if isinstance(layer, nn.Linear)})
        raise InputError(
            f"adapter.target_modules={list(config.target_modules)} does not fit this model "
            f"({one_line(error, 120)}): use all-linear or some of {', '.join(linear)}"
        ) from None
    if any(layer.lora_embedding_A for layer in lora_layers(model)):
        raise InputError("adapter.target_modules: only linear layers can be adapted, not embeddings")
    peft.set_adapter(name)
    return peft


@torch.no_grad()
def copy_adapter(peft: PeftModel, source: str, name: str) -> None:
    """A frozen copy of an adapter under another name; which one is active does not change."""
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
    """An adapter from a PEFT folder under the given name; where it is trainable, it becomes the active one.

    Args:
        model: the base, with adapters on it or without.
        name: what it is called from now on.
        folder: holds adapter_config.json and adapter_model.safetensors.
        trainable: whether its weights get gradients.
        key: the configuration key that named the folder, for messages.

    Raises:
        InputError: the folder is not a plain LoRA adapter in safetensors, or it was trained on another base.
    """
    adapter_file = folder / "adapter_model.safetensors"
    if not adapter_file.is_file():
        raise InputError(f"{key}: {adapter_file} does not exist: name a finished run or a PEFT adapter folder")
    try:
        stored = PeftConfig.from_pretrained(str(folder))
        # The roles' rows go through the low-rank product alone, so an adapter must consist of nothing else.
        plain = stored.peft_type == "LORA" and not (
            stored.use_dora
            or stored.lora_bias
            or stored.modules_to_save
            or stored.trainable_token_indices
            or stored.bias != "none"
            or stored.megatron_config  # with which PEFT imports whatever module megatron_core names
        )
        if not plain:
            raise InputError(
                f"{key}: {folder} is not a plain LoRA adapter (DoRA, biases, tokens, modules_to_save "
                "and Megatron are not supported): merge it into its base and use model=path"
            )
        active = model.active_adapter if isinstance(model, PeftModel) else name
        trained = isinstance(model, PeftModel) and any(weight.requires_grad for weight in model.parameters())
        if isinstance(model, PeftModel):
            peft = model
            peft.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
        else:
            peft = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=trainable)
    except (ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise InputError(
            f"{key}: {folder} does not fit this base model ({one_line(error, 160)}): "
            "use the base that the adapter was trained on"
        ) from None
    if any(name in layer.lora_embedding_A for layer in lora_layers(model)):
        raise InputError(f"{key}: {folder} adapts embeddings, not linear layers alone: merge it and use model=path")
    # Also where nothing changes: layers that only the new adapter has must learn that another one is active.
    peft.set_adapter(name if trainable else active, inference_mode=not (trainable or trained))
    return peft


def quantization(config: AdapterConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """How the base is quantised while it loads: 4-bit NormalFloat for QLoRA, None otherwise.

    Raises:
        InputError: QLoRA without CUDA or without bitsandbytes.
    """
    if config.name is not AdapterKind.qlora:
        return None
    if device.type != "cuda":
        raise InputError(f"adapter=qlora needs a CUDA GPU and this run is on {device.type}: use adapter=lora")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise InputError("adapter=qlora needs bitsandbytes: pip install 'alignrun[qlora]'") from None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """Every layer of the model that carries adapters."""
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
    """Have all rows go through the active adapter, computed as in `one_adapter` and not by PEFT.

    PEFT holds a float32 copy of every layer's input until the backward pass; and so the policy is the same function
    to the last bit where it is scored and where it is trained.
    """
    for layer in layers:
        layer.forward = partial(_forward_active, weakref.ref(layer))  # weakly, or no base would go with its last user


def one_adapter(layers: Sequence[LoraLayer], adapter: str | None) -> AbstractContextManager[None]:
    """Within the context, all rows go through one adapter with its gradient, or through the bare base.

    Args:
        layers: from `lora_layers`, after `apply_active`.
        adapter: its name; None is the bare base.
    """
    return forwards_as(layers, [partial(_forward, layer, adapter) for layer in layers])


def forwards_on_rows(layers: Sequence[LoraLayer], spans: Sequence[Span], rows: int) -> list[Forward]:
    """For `forwards_as`: each span of rows goes through its adapter and all other rows through the bare base, without
    gradients.

    The base product is taken once for all rows; only the low-rank products differ. PEFT offers the same by row
    names (`adapter_names`), by installing hooks on every layer at every forward pass and gathering rows by index;
    contiguous spans need neither.

    Args:
        layers: from `lora_layers`, after `apply_active`.
        spans: disjoint spans; an empty sequence is the bare base.
        rows: the size of the batch, to catch architectures that reorder rows inside a layer.
    """
    return [_forward_by_span(layer, spans, rows) for layer in layers]


@contextmanager
def forwards_as(layers: Sequence[LoraLayer], forwards: Sequence[Forward]) -> Iterator[None]:
    """Within the context, the layers compute as given."""
    usual = [layer.forward for layer in layers]
    try:
        for layer, forward in zip(layers, forwards, strict=True):
            vars(layer)["forward"] = forward  # past Module's own way, which looks for weights, at every decoded token
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
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    product: Tensor = _LowRankProduct.apply(x, a, b, layer.scaling[adapter])  # type: ignore[no-untyped-call]
    if type(layer.base_layer) is nn.Linear:
        return result.add_(product)
    return result + product  # a quantised layer may give a view that must not be written to


def _forward_by_span(layer: LoraLayer, spans: Sequence[Span], rows: int) -> Forward:
    """The layer's forward pass where the rows are mixed: up to the last bits the same as `_forward`. In decoding rows
    are few and every operation is dear, so all is looked up ahead."""
    base = layer.base_layer
    factors = [
        (span, layer.lora_A[adapter].weight.T, layer.lora_B[adapter].weight.T, layer.scaling[adapter])
        for adapter, span in spans
        if adapter in layer.lora_A
    ]

    def forward(x: Tensor) -> Tensor:
        result: Tensor = base(x)
        if factors and len(x) != rows:
            raise InputError(
                "this architecture does not keep a batch's rows apart inside its layers (a mixture of experts?): "
                "name attention layers only in adapter.target_modules"
            )
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
    """s·x Aᵀ Bᵀ in the precision of A and B, rounded to that of x; x [..., N] is held for the backward pass as it is,
    and so once for all layers that share an input, A [r, N], B [M, r]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        narrow = F.linear(x.to(a.dtype), a) * scaling  # the rank is narrower than the output
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
