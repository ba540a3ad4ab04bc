"""No optimiser step asks for a value that is on the device: on the meta device, where there are none."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignrun.algorithms.base import Loss, discover
from alignrun.algorithms.batches import Trial
from alignrun.build import Assembly, assemble
from alignrun.compose import compose
from alignrun.run_directory import RunDirectory
from alignrun.trainer import Trainer

ONLINE = sorted(name for name, kind in discover().items() if kind.online and name != "best_response")
PAIRS = ("dpo", "ipo", "gpo")


def without_data(value: Any) -> Any:
    """The same shapes and types; asking for a value is an error, as is copying one to the CPU."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: without_data(getattr(value, field.name)) for field in fields(value)})
    return value


@contextmanager
def on_meta(assembly: Assembly) -> Iterator[None]:
    """Within the context, all that is trained or read has no data."""
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    algorithm: Any = assembly.algorithm
    for module in assembly.trained.model.modules():
        for key, weight in list(module._parameters.items()):
            if weight is not None:
                made.setdefault(id(weight), nn.Parameter(without_data(weight), weight.requires_grad))
                module._parameters[key] = made[id(weight)]
        for key, buffer in list(module._buffers.items()):
            module._buffers[key] = None if buffer is None else without_data(buffer)
    if hasattr(algorithm, "value"):
        algorithm.value.weight = nn.Parameter(without_data(algorithm.value.weight))
    with torch.device("meta"):
        yield


def accumulate(folder: Path, *overrides: str, waits: bool = False) -> None:
    config = compose([*overrides])
    assembly = assemble(config)
    data, algorithm = assembly.data, assembly.algorithm
    batch = next(iter(algorithm.collect(data.batch_at(0, config.train.batch_size), 0)))
    batch = batch.batch if isinstance(batch, Trial) else batch
    if waits:
        inner = algorithm.loss

        def loss(micro: Any) -> Loss:
            found = inner(micro)
            found.total.item()
            return found

        algorithm.loss = loss  # type: ignore[method-assign]
    with on_meta(assembly):
        trainer = Trainer(config, assembly.trained, algorithm, data, assembly.evaluate, RunDirectory(folder))
        names, sums = trainer.accumulate(without_data(batch) if algorithm.online else batch)  # data come from the CPU
        assert sums.device.type == "meta"
        assert len(sums) == len(names) + 2


@pytest.mark.parametrize("name", ONLINE)
def test_no_online_step_waits(name: str, tmp_path: Path) -> None:
    accumulate(tmp_path, "experiment=smoke", f"algo={name}")


@pytest.mark.parametrize("setting", ["model.gradient_checkpointing=true", "algo.samples_per_prompt=1"])
def test_nor_in_the_other_ways_to_read(setting: str, tmp_path: Path) -> None:
    accumulate(tmp_path, "experiment=smoke", setting)


@pytest.mark.parametrize("name", PAIRS)
def test_no_step_on_pairs_waits(name: str, tmp_path: Path) -> None:
    accumulate(tmp_path, "experiment=game_pairs", f"algo={name}", "tracker=none")


def test_a_step_that_waits_would_be_found(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="meta tensors"):
        accumulate(tmp_path, "experiment=smoke", waits=True)
