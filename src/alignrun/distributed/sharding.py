"""Shard the frozen base over the processes of a job, with FSDP2."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from alignrun import distributed
from alignrun.errors import InputError


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Shard the weights of every decoder layer equally; a layer is gathered while it computes.

    Embeddings and the vocabulary head are replicated, since the head is used by itself. Adapters, which are added
    later, are replicated too, so training, checkpoints and moving averages do not depend on sharding. Of the launcher's
    settings, `fsdp_reshard_after_forward` and `fsdp_offload_params` apply.

    Args:
        model: frozen, on the CPU, equal on every process.
        device: the device it will compute on.

    Raises:
        InputError: the model does not declare its layers.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin

    settings = FullyShardedDataParallelPlugin()  # from the environment that `accelerate launch` sets
    # Shards on a CPU are in host memory already.
    offload = OffloadPolicy() if device.type == "cpu" else settings.cpu_offload
    mesh = init_device_mesh(device.type, (distributed.size(),))
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.base_model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise InputError(f"{model.config.model_type} models do not declare their layers: train without --use_fsdp")
    for layer in layers:
        fully_shard(
            layer,
            mesh=mesh,
            reshard_after_forward=settings.reshard_after_forward,
            offload_policy=offload,
        )
    split = {weight for layer in layers for weight in layer.parameters()}
    whole = {weight for weight in model.base_model.parameters() if weight not in split}
    # The root knows the order of its layers and prefetches the next one.
    fully_shard(model.base_model, mesh=mesh, offload_policy=offload, ignored_params=whole)
    for weight in whole | set(model.parameters()) - split:
        weight.data = weight.data.to(device)
