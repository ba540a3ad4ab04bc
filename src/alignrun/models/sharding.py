"""The frozen base split among the processes of a job, layer by layer (FSDP2)."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from alignrun import processes
from alignrun.errors import InputError


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Leave each process an equal part of the weights of every decoder layer, which are gathered while it computes.

    Embeddings, the last norm and the vocabulary head stay whole, since the head is used by itself; adapters that are
    put on the base later stay whole, too, and so training, checkpoints and moving averages know nothing of this.
    Of the launcher's settings two count: whether layers are split again after the forward pass, and whether the parts
    wait in the host's memory.

    Args:
        model: on the CPU, the same in each process; frozen.
        device: where it is to compute.

    Raises:
        InputError: the model does not say what its layers are.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin

    settings = FullyShardedDataParallelPlugin()  # as `accelerate launch` has put it into the environment
    mesh = init_device_mesh(device.type, (processes.size(),))
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.base_model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise InputError(f"{model.config.model_type} models do not say what their layers are: train without --use_fsdp")
    for layer in layers:
        fully_shard(
            layer,
            mesh=mesh,
            reshard_after_forward=settings.reshard_after_forward,
            offload_policy=settings.cpu_offload,
        )
    split = {weight for layer in layers for weight in layer.parameters()}
    whole = {weight for weight in model.base_model.parameters() if weight not in split}
    # The root knows the order of its layers, and fetches the next while one computes.
    fully_shard(model.base_model, mesh=mesh, offload_policy=settings.cpu_offload, ignored_params=whole)
    for weight in whole | set(model.parameters()) - split:
        weight.data = weight.data.to(device)
