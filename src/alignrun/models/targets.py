"""The target layers of an adapter."""

from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ALL_LINEAR = "all-linear"

_EXPERT_NAMES = {"gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"}
"""Layer names that PEFT interprets as experts and routers in models with experts, even for dense layers."""


_USED_BY_WEIGHT = ("out_proj", "dt_proj")
"""Layers whose weight a state-space mixer or its kernel reads directly, bypassing the layer's forward pass."""


def default_targets(model: PreTrainedModel | PeftModel) -> str | list[str]:
    """Every linear layer except the vocabulary head and the unsupported layers of experts and state-space mixers.

    Experts are stacked tensors and routers return several values, so neither is a linear layer. Inside an expert block
    the tokens of all rows form one list, so rows with different adapters cannot be separated.
    """
    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    blocks = tuple(f"{block}." for block in expert_blocks(base))
    by_weight = {f"{mixer}.{layer}" for mixer in _mixers(base) for layer in _USED_BY_WEIGHT}
    if not blocks and not by_weight:
        return ALL_LINEAR
    head = base.get_output_embeddings()
    return [
        name
        for name, layer in base.named_modules()
        if isinstance(layer, (nn.Linear, Conv1D, LoraLayer))
        and layer is not head
        and ".lora_" not in name
        and not name.endswith(".base_layer")
        and not name.startswith(blocks)
        and not (blocks and name.split(".")[-1] in _EXPERT_NAMES)
        and name not in by_weight
    ]


def skipped_layers(model: nn.Module) -> str | None:
    """A message about the layers that `default_targets` skips besides the vocabulary head; None if there are none."""
    blocks, mixers = len(expert_blocks(model)), len(_mixers(model))
    parts = [f"{blocks} blocks of experts with their routers"] * (blocks > 0)
    parts += [f"{' and '.join(_USED_BY_WEIGHT)} of {mixers} state-space mixers"] * (mixers > 0)
    return f"adapter: without {', '.join(parts)}, which stay as they are" if parts else None


def _mixers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if hasattr(module, "A_log")]


def expert_blocks(model: nn.Module) -> list[str]:
    """The names of the mixture-of-experts blocks, each with its router and shared experts."""
    return [
        name
        for name, module in model.named_modules()
        if any(key == "experts" or "Experts" in type(child).__name__ for key, child in module.named_children())
    ]


def not_linear(model: nn.Module, adapter: str) -> str | None:
    """The name and type of an adapted layer that is not a single matrix product; None if there is none."""
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in {*layer.lora_A, *layer.lora_embedding_A}:
            continue
        base = layer.get_base_layer()
        if isinstance(layer, ParamWrapper) or not isinstance(base, (nn.Linear, Conv1D)):
            return f"{name.removeprefix('base_model.model.')} ({type(base).__name__})"
    return None
