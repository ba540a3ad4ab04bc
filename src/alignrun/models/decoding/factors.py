"""Low-rank products of a decoding step from copies of the factors, made once for a rollout.

Layers that read one input, as query, key and value do, share the product with their stacked factors A: a step runs
1 + L products for L of them, where float32 products on a half-precision base take up to 5 kernels each.

Shape legend: R rows, N inputs and M outputs of a layer, r rank, L layers with one input.
"""

from collections.abc import Iterator, Sequence

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from alignrun.errors import InputError
from alignrun.models.adapters import MIXED_ROWS, Forward, Span, lora_layers

ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of sibling layers that read the same tensor, in most families."""


class RolloutFactors:
    """Copies of the factors of some adapters in the precision of the products."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, adapters: Sequence[str], dtype: torch.dtype) -> None:
        """Copy the factors as they are now."""
        self._layers = lora_layers(model)
        self._groups = list(_groups(model))
        self._stacked = {
            (number, adapter): torch.cat([layer.lora_A[adapter].weight for layer in group if adapter in layer.lora_A])
            .to(dtype)
            .T
            for number, group in enumerate(self._groups)
            for adapter in adapters
            if any(adapter in layer.lora_A for layer in group)
        }
        self._second = {
            (layer, adapter): layer.lora_B[adapter].weight.to(dtype).T
            for layer in self._layers
            for adapter in adapters
            if adapter in layer.lora_B
        }

    def forwards(self, spans: Sequence[Span], rows: int) -> list[Forward]:
        """Forward functions as those of `forwards_on_rows`, equal to them up to rounding."""
        found = {}
        for number, group in enumerate(self._groups):
            narrow = _Narrow([(span, self._stacked.get((number, adapter))) for adapter, span in spans], len(group))
            starts = dict.fromkeys((adapter for adapter, _ in spans), 0)
            for layer in group:
                parts = []
                for place, (adapter, span) in enumerate(spans):
                    if adapter in layer.lora_A:
                        start, rank = starts[adapter], layer.lora_A[adapter].weight.shape[0]
                        starts[adapter] += rank
                        b, scaling = self._second[layer, adapter], layer.scaling[adapter]
                        parts.append((place, span, slice(start, start + rank), b, scaling))
                found[layer] = _forward(layer, narrow, parts, rows)
        return [found[layer] for layer in self._layers]


class _Narrow:
    """x Aᵀ of all layers of a group, computed for the first that is called and kept until the last has read it."""

    def __init__(self, factors: Sequence[tuple[slice, Tensor | None]], layers: int) -> None:
        self._factors, self._layers = factors, layers
        self._input: Tensor | None = None
        self._products: list[Tensor | None] = []
        self._left = 0

    def __call__(self, x: Tensor) -> list[Tensor | None]:
        """For each span of rows, [rows, Σr] or None; the same object x is multiplied once."""
        if x is not self._input:  # in another family the layers of a group may read different tensors
            self._input, self._left = x, self._layers
            self._products = [
                None if a is None else torch.mm(x[span].flatten(0, -2).to(a.dtype), a) for span, a in self._factors
            ]
        products, self._left = self._products, self._left - 1
        if not self._left:
            self._input, self._products = None, []
        return products


def _forward(
    layer: LoraLayer, narrow: _Narrow, parts: Sequence[tuple[int, slice, slice, Tensor, float]], rows: int
) -> Forward:
    base = layer.base_layer

    def forward(x: Tensor) -> Tensor:
        result: Tensor = base(x)
        if parts and len(x) != rows:
            raise InputError(MIXED_ROWS)
        products = narrow(x)
        for place, span, columns, b, scaling in parts:
            product = products[place]
            assert product is not None
            rows_out = result[span].view(-1, result.shape[-1])
            if result.dtype is b.dtype:
                rows_out.addmm_(product[:, columns], b, alpha=scaling)
            else:
                rows_out.add_((product[:, columns] * scaling) @ b)
        return result

    return forward


def _groups(model: nn.Module) -> Iterator[list[LoraLayer]]:
    """The layers of the model, those with one input together."""
    for parent in model.modules():
        children = {name: child for name, child in parent.named_children() if isinstance(child, LoraLayer)}
        for names in ONE_INPUT:
            together = [children[name] for name in names if name in children]
            if len({layer.base_layer.in_features for layer in together}) == 1:
                yield together
                children = {name: child for name, child in children.items() if name not in names}
        for child in children.values():
            yield [child]
