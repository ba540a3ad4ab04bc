"""Weights that others have stored: real numbers, all of them finite; anything else is refused by its name."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

_WHOLE = ("I", "U", "BOOL")
"""How safetensors names types that are no real numbers begin."""

OTHER_WEIGHTS = "name another run or adapter, or export an earlier step of that run with --step"
"""What to do where an adapter or a head cannot be used."""


def unfit_weight(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Why a model cannot compute with one of these weights, the first of them; None where all are fit."""
    for name, weight in weights:
        if not weight.is_floating_point():
            return f"{name} holds {weight.dtype} and not real numbers"
        if not is_finite(weight):
            return f"{name} is not finite"
    return None


def is_finite(weight: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    return bool(torch.isfinite(weight if weight.element_size() > 1 else weight.float()).all())


def whole_weight(model: nn.Module, folder: Path) -> str | None:
    """A weight of the model that its folder stores as whole numbers or truth values, which transformers would convert
    without a word; None where there is none, or where files have other names for weights."""
    names = {name for name, _ in model.named_parameters()}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dictionary
                kind = str(file.get_slice(name).get_dtype())
                if kind.startswith(_WHOLE) and any(known == name or known.endswith(f".{name}") for known in names):
                    return f"{name} holds {kind} and not real numbers"
    return None
