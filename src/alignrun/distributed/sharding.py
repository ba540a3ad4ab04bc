"""The frozen base split among the processes of a job: by FSDP2, or by DeepSpeed's ZeRO-3."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from alignrun import distributed
from alignrun.errors import InputError, one_line


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Leave each process an equal part of the weights of the decoder layers, which are gathered while they compute.

    Embeddings and the vocabulary head stay whole, since the head is used by itself; adapters that are put on the base
    later stay whole, too, and so training, checkpoints and moving averages know nothing of this. DeepSpeed leaves small
    weights whole besides (`stage3_param_persistence_threshold`).

    Args:
        model: on the CPU, the same in each process; frozen.
        device: where it is to compute.

    Raises:
        InputError: the model does not say what its layers are, or the launcher's settings are not to be used.
    """
    if distributed.sharding() is distributed.Sharding.fsdp2:
        _fsdp2(model, device)
    else:
        _zero3(model, device)


def _fsdp2(model: PreTrainedModel, device: torch.device) -> None:
    """Layers are gathered and split again as wholes. Of the launcher's settings two count: whether they are split again
    after the forward pass, and whether the parts wait in the host's memory."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    settings = FullyShardedDataParallelPlugin()  # as `accelerate launch` has put it into the environment
    # Parts on a CPU wait in the host's memory as it is.
    offload = OffloadPolicy() if device.type == "cpu" else settings.cpu_offload
    mesh = init_device_mesh(device.type, (distributed.size(),))
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.base_model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise InputError(f"{model.config.model_type} models do not say what their layers are: train without --use_fsdp")
    for layer in layers:
        fully_shard(
            layer,
            mesh=mesh,
            reshard_after_forward=settings.reshard_after_forward,
            offload_policy=offload,
        )
    split = {weight for layer in layers for weight in layer.parameters()}
    whole = {weight for weight in model.base_model.parameters() if weight not in split}
    # The root knows the order of its layers, and fetches the next while one computes.
    fully_shard(model.base_model, mesh=mesh, offload_policy=offload, ignored_params=whole)
    for weight in whole | set(model.parameters()) - split:
        weight.data = weight.data.to(device)


def _zero3(model: PreTrainedModel, device: torch.device) -> None:
    """Matrices are gathered one by one, the next ones ahead of time. Of the launcher's settings all those count that
    are about parameters: offloading them to the host or to NVMe, what is prefetched, which small ones stay whole."""
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)  # what DeepSpeed calls
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # which it wants to know, though it sees no batches
        **distributed.deepspeed_settings(),
        "bf16": {"enabled": model.dtype is torch.bfloat16},
        "fp16": {"enabled": model.dtype is torch.float16},
    }
    try:
        import deepspeed

        with _whole_embeddings(model):
            # First, or it would move the whole base to each device before it splits it.
            deepspeed.zero.Init(module=model.base_model, config_dict_or_path=settings, dtype=model.dtype)
            deepspeed.initialize(model=model.base_model, config=settings)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, AssertionError, KeyError, RuntimeError, ImportError) as error:
        raise InputError(
            f"DeepSpeed does not take this base in {model.dtype} under the launcher's settings ({one_line(error)}): "
            "change them or model.dtype, or launch with --use_fsdp --fsdp_version 2"
        ) from None
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        if not hasattr(tensor, "ds_id"):  # which DeepSpeed has placed
            tensor.data = tensor.data.to(device)


@contextmanager
def _whole_embeddings(model: PreTrainedModel) -> Iterator[None]:
    """Within the context the model has no embeddings that could be split."""
    kept = model.get_input_embeddings()
    model.set_input_embeddings(nn.Identity())
    try:
        yield
    finally:
        model.set_input_embeddings(kept)
