"""No optimiser step asks for a value that is on the device: on the meta device, where there are none."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ONLINE
from torch import nn

from alignrun.algorithms.base import Loss
from alignrun.launch.build import Assembly, assemble
from alignrun.launch.compose import compose
from alignrun.models.device import batch_to
from alignrun.planning.trace import empty_weights
from alignrun.training.accumulate import Accumulator

PAIRS = ("dpo", "ipo", "gpo")


@contextmanager
def on_meta(assembly: Assembly) -> Iterator[None]:
    """Within the context, all that is trained or read has no data; to ask for a value, or to copy it, is an error."""
    algorithm: Any = assembly.algorithm
    empty_weights(assembly.trained.model, "meta")
    if hasattr(algorithm, "value"):
        algorithm.value.weight = nn.Parameter(torch.empty_like(algorithm.value.weight, device="meta"))
    with torch.device("meta"):
        yield


def accumulate(folder: Path, *overrides: str, waits: bool = False) -> None:
    config = compose([*overrides])
    assembly = assemble(config)
    data, algorithm = assembly.data, assembly.algorithm
    algorithm.half_step = nullcontext
    batch = next(iter(algorithm.collect(data.batch_at(0, config.train.batch_size), 0)))
    if waits:
        inner = algorithm.loss

        def loss(micro: Any) -> Loss:
            found = inner(micro)
            found.total.item()
            return found

        algorithm.loss = loss  # type: ignore[method-assign]
    with on_meta(assembly):
        weights = [*assembly.trained.trainable().values(), *algorithm.trainable().values()]
        accumulate_on = Accumulator(algorithm, weights, torch.device("meta"), 2, 1.0, note=print)
        names, sums = accumulate_on(
            batch_to(batch, torch.device("meta")) if algorithm.online else batch  # data come from the CPU
        )
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
