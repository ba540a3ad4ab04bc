"""The optimiser, its learning-rate schedule, and its state as plain tensors."""

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alignrun.config import OptimConfig, Schedule
from alignrun.distributed.parts import part_of
from alignrun.errors import InputError


def make_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay (arXiv 1711.05101)."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of step 0 ≤ `step` < `steps`: linear warm-up, then constant or decaying towards zero.

    It depends on the step alone, so a resumed run continues the same schedule.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    factor = {
        Schedule.constant: 1.0,
        Schedule.linear: 1.0 - done,
        Schedule.cosine: 0.5 * (1.0 + math.cos(math.pi * done)),
    }[config.schedule]
    return config.learning_rate * factor


def set_learning_rate(optimizer: Optimizer, config: OptimConfig, step: int, steps: int) -> float:
    """Set the learning rate of a step, and return it."""
    rate = learning_rate(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def flatten_optimizer(optimizer: Optimizer, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of AdamW as (tensors, JSON): moments and step counts by parameter name, and the groups' settings.

    `names` are the parameters' names in the order of the groups. The tensors are live, not copies: save them before the
    next step.
    """
    tensors: dict[str, Tensor] = {}
    groups = []
    for own, group in zip(_names_by_group(optimizer, names), optimizer.param_groups, strict=True):
        for name, parameter in zip(own, group["params"], strict=True):
            tensors |= {f"{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
        settings = {key: value for key, value in group.items() if key != "params"}
        groups.append(settings | {"lr": float(group["lr"]), "names": own})
    return tensors, {"groups": groups, "tensors": sorted(tensors)}


def restore_optimizer(
    optimizer: Optimizer, names: list[str], tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Restore what `flatten_optimizer` returned, bit for bit: the next step is the one that would have followed.

    Raises InputError, with the optimiser unchanged, if names, order, groups or shapes differ from the saved ones.
    """
    now = _names_by_group(optimizer, names)
    saved = [group["names"] for group in state["groups"]]
    if now != saved:
        strange = sorted(set(names) ^ {name for group in saved for name in group})
        detail = f"{strange[0]} is in only one of the two" if strange else "their order or groups differ"
        raise InputError(f"optimiser state: the checkpoint's parameters are not this model's ({detail})")
    if sorted(tensors) != state["tensors"]:
        raise InputError("optimiser state: the checkpoint lacks tensors that it lists")
    entries: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    parameters = dict(zip(names, (p for group in optimizer.param_groups for p in group["params"]), strict=True))
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(".")
        if key != "step" and value.shape != parameters[name].shape:
            shapes = f"{list(value.shape)} in the checkpoint and {list(parameters[name].shape)} in the model"
            raise InputError(f"optimiser state: {full_name} has shape {shapes}")
        entries[name][key] = (value if key == "step" else part_of(value, parameters[name])).clone()
    groups = [
        {key: tuple(value) if isinstance(value, list) else value for key, value in group.items() if key != "names"}
        | {"params": own["params"]}
        for group, own in zip(state["groups"], optimizer.state_dict()["param_groups"], strict=True)
    ]
    states = {index: entries[name] for index, name in enumerate(names) if entries[name]}
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _names_by_group(optimizer: Optimizer, names: list[str]) -> list[list[str]]:
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if len(set(names)) != len(names) or len(names) != sum(sizes):
        raise ValueError(f"{sum(sizes)} parameters need as many distinct names, not {len(set(names))}")
    rest = iter(names)
    return [list(islice(rest, size)) for size in sizes]
