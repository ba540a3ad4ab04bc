"""Shard a base over the processes of a job, with FSDP2, from the weights that one process has loaded."""

import copy
import os
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from transformers import PreTrainedModel

from alignrun import distributed
from alignrun.distributed.layers import decoder_layers
from alignrun.distributed.parts import gathered, whole
from alignrun.errors import InputError, RunError

if TYPE_CHECKING:
    from accelerate.utils import FullyShardedDataParallelPlugin


def shard(model: PreTrainedModel, device: torch.device) -> PreTrainedModel | None:
    """Shard the weights of every decoder layer equally; a layer is gathered while it computes.

    Within a machine they are sharded, and every machine has all of them: layers are then gathered over its own links
    alone. Of the launcher's settings, `fsdp_reshard_after_forward`, `fsdp_offload_params` and
    `parallelism_config_dp_shard_size` apply.

    Frozen: embeddings and the vocabulary head are replicated, since the head is used by itself. Adapters, which are
    added later, are replicated too, so training, checkpoints and moving averages do not depend on sharding.

    Trained: embeddings, norms and the head are sharded as well, so that every process updates its part of every
    weight. Gradients are sums over all processes, on several machines too.

    Args:
        model: on the main process on the CPU with the weights, which the others get from it, layer by layer: elsewhere
            its weights may be on the meta device. Its weights are trained if they require gradients.
        device: the device it will compute on.

    Returns:
        Of a trained model, its outline for `copy_sharded`: the same model with its weights on the meta device.

    Raises:
        InputError: the model does not declare its layers.
        RunError: the processes have different models.
    """
    trained, main = any(weight.requires_grad for weight in model.parameters()), distributed.is_main()
    _check_layers(model)
    _send_outline(model)
    outline = _outline(model) if trained else None

    def sent(_: str, weight: nn.Parameter) -> Tensor:
        value = weight.data.to(device).contiguous() if main else torch.empty_like(weight, device=device)
        with distributed.report_lost():
            dist.broadcast(value, src=0)
        return value

    _shard(model, device, sent, trained=trained)
    return outline


def copy_sharded(source: PreTrainedModel, outline: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A frozen copy of a trained model, sharded like it. All processes call it together.

    Args:
        source: sharded by `shard`.
        outline: what that returned.
        device: where the model is.
    """
    weights = dict(source.named_parameters())
    model = copy.deepcopy(outline).requires_grad_(False)
    _shard(model, device, lambda name, _: whole(weights[name]), trained=True)
    return model


def check_trained() -> None:
    """Refuse settings of the launcher that apply to a frozen base alone. Raises InputError."""
    settings = _settings()
    # A layer that stays whole after a pass would keep its old weights when they change without a backward pass.
    kept = [] if settings.reshard_after_forward else ["--fsdp_reshard_after_forward false"]
    kept += ["--fsdp_offload_params true"] if isinstance(settings.cpu_offload, CPUOffloadPolicy) else []
    if kept:
        raise InputError(
            f"accelerate launch {' '.join(kept)} is for a frozen base, and adapter=none trains it: leave it out, or "
            "use adapter=lora"
        )


def _settings() -> "FullyShardedDataParallelPlugin":
    """What `accelerate launch` has put into the environment."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    return FullyShardedDataParallelPlugin()


def _shard(
    model: PreTrainedModel, device: torch.device, give: Callable[[str, nn.Parameter], Tensor], *, trained: bool
) -> None:
    """Shard a model whose weights `give` returns, on the device, by name: all of them if trained, or those of layers.

    Not more than one layer is whole at a time.
    """
    settings = _settings()
    # Shards on a CPU are in host memory already.
    offload = OffloadPolicy() if device.type == "cpu" else settings.cpu_offload
    # Groups of processes need no collective between them if the weights are frozen and have no gradients.
    mesh = _mesh(device) if trained else _mesh(device)["fsdp"]
    names = {weight: name for name, weight in model.named_parameters()}
    layers = decoder_layers(model)
    for layer in layers:
        _place(layer, device, names, give)
        sharded = fully_shard(
            layer, mesh=mesh, reshard_after_forward=settings.reshard_after_forward, offload_policy=offload
        )
        # Sums, not means: a step divides them by its count of targets.
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_gradient_divide_factor(1.0)
    inside = {weight for layer in layers for weight in layer.parameters()}
    _place(model, device, names, give, inside)
    # The root knows the order of its layers and prefetches the next one.
    outside = {weight for weight in model.base_model.parameters() if weight not in inside}
    fully_shard(model.base_model, mesh=mesh, offload_policy=offload, ignored_params=outside)
    if trained:
        _shard_others(model, mesh, inside)


def _shard_others(model: nn.Module, mesh: DeviceMesh, inside: Container[nn.Parameter]) -> None:
    """Shard the weights outside the layers; a module gathers its own while it computes.

    FSDP gathers a module's weights as often as the module is called. The vocabulary head is called once for each chunk
    of its process's tokens, which would be a different number on every process.
    """
    parts: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        own = {name: weight for name, weight in module._parameters.items() if weight is not None}
        own = {name: weight for name, weight in own.items() if weight not in inside}
        for name, weight in own.items():
            if weight not in parts:
                parts[weight] = nn.Parameter(_cut(weight.data, mesh), requires_grad=weight.requires_grad)
            module._parameters[name] = parts[weight]
        if own:
            kept = {name: parts[weight] for name, weight in own.items()}
            module.register_forward_pre_hook(partial(_gather, kept))
            module.register_forward_hook(partial(_restore, kept), always_call=True)


def _cut(value: Tensor, mesh: DeviceMesh) -> Tensor:
    """This process's part of a weight as FSDP cuts it, by its first dimension; the rest of its memory is freed."""
    cut = distribute_tensor(value, mesh, [Replicate(), Shard(0)], src_data_rank=None)
    own, shape, stride = cut.to_local().clone(), value.shape, value.stride()
    return DTensor.from_local(own, mesh, cut.placements, shape=shape, stride=stride)


def _gather(kept: Mapping[str, nn.Parameter], module: nn.Module, _: object) -> None:
    for name, weight in kept.items():
        if module._parameters[name] is weight:  # and not replaced by `functional_call`
            module._parameters[name] = gathered(weight)  # type: ignore[assignment]


def _restore(kept: Mapping[str, nn.Parameter], module: nn.Module, *_: object) -> None:
    module._parameters.update(kept)


def _check_layers(model: PreTrainedModel) -> None:
    if not decoder_layers(model):
        raise InputError(f"{model.config.model_type} models do not declare their layers: train without --use_fsdp")


def _outline(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model with its weights on the meta device."""
    weights: dict[int, object] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, weights)


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
    """All processes, in groups that the base is sharded over: every group has the whole base.

    Launchers number the processes of a machine consecutively. PEFT knows a sharded weight by the name of the dimension.
    """
    size, each = distributed.size(), shards()
    return init_device_mesh(device.type, (size // each, each), mesh_dim_names=("replicate", "fsdp"))


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
            setattr(model.get_submodule(owner), own, nn.Parameter(kept, requires_grad=weight.requires_grad))
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


def _place(
    part: nn.Module,
    device: torch.device,
    names: Mapping[nn.Parameter, str],
    give: Callable[[str, nn.Parameter], Tensor],
    apart: Container[nn.Parameter] = (),
) -> None:
    """Put what `give` returns for the weights of a part of the model into it, those of `apart` left out."""
    placed: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    for module in part.modules():
        for name, weight in list(module._parameters.items()):
            if weight is None or weight in apart:
                continue
            if weight not in placed:
                placed[weight] = nn.Parameter(give(names[weight], weight), requires_grad=weight.requires_grad)
            module._parameters[name] = placed[weight]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
