"""Shard the frozen base over the processes of a job, with FSDP2, from the weights that one process has loaded."""

import os
from collections.abc import Container, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from alignrun import distributed
from alignrun.distributed.layers import decoder_layers
from alignrun.errors import InputError, RunError


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Shard the weights of every decoder layer equally; a layer is gathered while it computes.

    Within a machine they are sharded, and every machine has all of them: layers are then gathered over its own links
    alone, and frozen weights have no gradients to send. Embeddings and the vocabulary head are replicated, since the
    head is used by itself. Adapters, which are added later, are replicated too, so training, checkpoints and moving
    averages do not depend on sharding. Of the launcher's settings, `fsdp_reshard_after_forward`,
    `fsdp_offload_params` and `parallelism_config_dp_shard_size` apply.

    Args:
        model: frozen; on the main process on the CPU with the weights, which the others get from it, layer by layer:
            elsewhere its weights may be on the meta device.
        device: the device it will compute on.

    Raises:
        InputError: the model does not declare its layers.
        RunError: the processes have different models.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin

    settings = FullyShardedDataParallelPlugin()  # from the environment that `accelerate launch` sets
    # Shards on a CPU are in host memory already.
    offload = OffloadPolicy() if device.type == "cpu" else settings.cpu_offload
    mesh = _mesh(device)
    layers = decoder_layers(model)
    if not layers:
        raise InputError(f"{model.config.model_type} models do not declare their layers: train without --use_fsdp")
    _send_outline(model)
    for layer in layers:
        _send_weights(layer, device)
        fully_shard(
            layer,
            mesh=mesh,
            reshard_after_forward=settings.reshard_after_forward,
            offload_policy=offload,
        )
    split = {weight for layer in layers for weight in layer.parameters()}
    _send_weights(model, device, split)
    # The root knows the order of its layers and prefetches the next one.
    whole = {weight for weight in model.base_model.parameters() if weight not in split}
    fully_shard(model.base_model, mesh=mesh, offload_policy=offload, ignored_params=whole)


def shards() -> int:
    """Among how many processes the base is sharded: those of a machine, unless the launcher says otherwise.

    All of them if machines have one process each or unequal numbers.

    Raises:
        InputError: the launcher's number is none, or does not divide that of the processes.
    """
    size, given = distributed.size(), os.environ.get("PARALLELISM_CONFIG_DP_SHARD_SIZE", "1")
    if not given.isdecimal():
        raise InputError(f"PARALLELISM_CONFIG_DP_SHARD_SIZE={given} is not a number of processes: set one, or unset it")
    wanted = int(given)
    if wanted > 1 and size % wanted:
        raise InputError(
            f"accelerate launch --parallelism_config_dp_shard_size {wanted} does not divide the {size} processes"
        )
    if wanted > 1:
        return wanted
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    alike = distributed.all_equal(here) and size % here == 0
    return here if alike and here > 1 else size


def _mesh(device: torch.device) -> DeviceMesh:
    """The processes that the base is sharded over, of a mesh of all: every group of them has the whole base.

    Groups need no collective between them, since frozen weights have no gradients. Launchers number the processes of a
    machine consecutively. PEFT knows a sharded weight by the name of the dimension.
    """
    size, each = distributed.size(), shards()
    return init_device_mesh(device.type, (size // each, each), mesh_dim_names=("replicate", "fsdp"))["fsdp"]


def _send_outline(model: PreTrainedModel) -> None:
    """Give all processes the main one's shapes and precisions, buffers and other tensors that are no weights.

    Raises:
        RunError: a process has other weights.
    """
    weights = {name: (tuple(weight.shape), weight.dtype) for name, weight in model.named_parameters()}
    others = {place: tensor for place, _, tensor in _other_tensors(model)}
    theirs, tensors = distributed.broadcast((weights, others) if distributed.is_main() else None)
    with distributed.raise_together():
        same = {name: shape for name, (shape, _) in weights.items()} == {
            name: shape for name, (shape, _) in theirs.items()
        }
        if not same:
            raise RunError("the processes of this job have different models: give all of them the same files")
    if distributed.is_main():
        return
    for name, weight in model.named_parameters():
        if weight.dtype != theirs[name][1]:  # some models keep a few weights in float32
            owner, _, own = name.rpartition(".")
            kept = torch.empty_like(weight, dtype=theirs[name][1])
            setattr(model.get_submodule(owner), own, nn.Parameter(kept, requires_grad=False))
    for place, module, tensor in list(_other_tensors(model)):
        value = tensors.get(place, tensor)
        own = place.rpartition(".")[2]
        if own in module._buffers:
            module._buffers[own] = value
        else:
            setattr(module, own, value)


def _other_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Buffers and plain attributes, such as rotary frequencies: full name, owner and tensor."""
    for prefix, module in model.named_modules():
        for name, value in [*module._buffers.items(), *vars(module).items()]:
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                yield f"{prefix}.{name}", module, value


def _send_weights(part: nn.Module, device: torch.device, apart: Container[nn.Parameter] = ()) -> None:
    """Put the main process's weights of a part of the model on every process's device, those of `apart` left out."""
    sent: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    for module in part.modules():
        for name, weight in list(module._parameters.items()):
            if weight is None or weight in apart:
                continue
            if weight not in sent:
                main = distributed.is_main()
                value = weight.data.to(device).contiguous() if main else torch.empty_like(weight, device=device)
                with distributed.report_lost():
                    dist.broadcast(value, src=0)
                sent[weight] = nn.Parameter(value, requires_grad=False)
            module._parameters[name] = sent[weight]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
