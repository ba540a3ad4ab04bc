"""Fused kernels of the package liger-kernel for the norms and activations of a model."""

import sys

import torch
import transformers
from transformers import PreTrainedModel

from alignrun.errors import InputError, one_line

SETTING = "model.kernels=liger"


def fuse(model: PreTrainedModel, device: torch.device) -> None:
    """Replace the norms and gated activations of this model by fused kernels, in place.

    Only this model changes. Liger also replaces classes of transformers, which later models of the process would use,
    judges on a CPU among them; that is undone. Rotary embeddings are such a replacement and stay those of transformers.

    Raises:
        InputError: the package, the device or the model's family does not allow it.
    """
    if device.type != "cuda":
        raise InputError(f"{SETTING} needs a CUDA GPU and this run is on {device.type}: use model.kernels=torch")
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance as apply
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as families
    except ModuleNotFoundError as error:
        if error.name != "liger_kernel":
            raise _unfit(error) from error
        raise InputError(f"{SETTING} needs liger-kernel: pip install 'alignrun[liger]'") from None
    except ImportError as error:  # it refuses versions of transformers
        raise _unfit(error) from error
    if model.config.model_type not in families:
        raise InputError(f"{SETTING} has no kernels for {model.config.model_type} models: use model.kernels=torch")
    modules = [sys.modules[kind.__module__] for kind in type(model).__mro__ if kind.__module__ in sys.modules]
    before = [(module, dict(vars(module))) for module in modules if module.__name__.startswith("transformers.models.")]
    try:
        apply(model=model, rope=False, cross_entropy=False, fused_linear_cross_entropy=False)
    finally:
        for module, names in before:
            vars(module).update(names)


def _unfit(error: Exception) -> InputError:
    return InputError(
        f"{SETTING} cannot be used with transformers {transformers.__version__} ({one_line(error, 160)}): install "
        "another version of liger-kernel, or use model.kernels=torch"
    )
