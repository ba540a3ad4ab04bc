"""The frozen base split among the processes of a job, by FSDP2."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from alignrun import distributed
from alignrun.errors import InputError


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Leave each process an equal part of the weights of every decoder layer; a layer is gathered while it computes.

    Embeddings and the vocabulary head stay whole, since the head is used by itself. Adapters, which are added later,
    stay whole too, so training, checkpoints and moving averages do not depend on sharding. Of the launcher's settings,
    `fsdp_reshard_after_forward` and `fsdp_offload_params` are used.

    Args:
        model: on the CPU, the same in each process; frozen.
        device: where it is to compute.

    Raises:
        InputError: the model does not say what its layers are.
    """
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
