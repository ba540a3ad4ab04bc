"""Checks of stored weights: all must be finite real numbers."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

_WHOLE = ("I", "U", "BOOL")
"""Prefixes of the safetensors dtypes that are not real numbers."""

OTHER_WEIGHTS = "name another run or adapter, or export an earlier step of that run with --step"
"""Advice for an unusable adapter or head."""


def unfit_weight(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Why the first unusable weight cannot be used; None if all can."""
    for name, weight in weights:
        if not weight.is_floating_point():
            return f"{name} holds {weight.dtype} and not real numbers"
        if not is_finite(weight):
            return f"{name} is not finite"
    return None


def is_finite(weight: Tensor) -> bool:
    """Whether all elements of a tensor are finite."""
    return bool(torch.isfinite(weight if weight.element_size() > 1 else weight.float()).all())


def whole_weight(model: nn.Module, folder: Path) -> str | None:
    """A weight stored as integers or booleans, which transformers would silently convert.

    None if there is none, or if the files use other names for the weights.
    """
    names = {name for name, _ in model.named_parameters()}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dictionary
                kind = str(file.get_slice(name).get_dtype())
                if kind.startswith(_WHOLE) and any(known == name or known.endswith(f".{name}") for known in names):
                    return f"{name} holds {kind} and not real numbers"
    return None
