"""What the ranks of a job do in tests of several processes: commands in a row, and failures of one of them."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from alignrun import cli, distributed
from alignrun.algorithms.nash_md import NashMD
from alignrun.models import backbone
from alignrun.training.trainer import Trainer

train_step = Trainer.train_step
loss = NashMD.loss
load_model = backbone.load_model


def all_commands() -> None:
    """Run the commands of a JSON file in a row; next to each run, write how many weights this rank holds.

    And, of trained weights, how many numbers of their gradients and of the optimiser's moments.

    A rank that reads the weights of a model leaves a file in the working directory that says so.
    """
    Trainer.train_step = train_step_and_write  # type: ignore[method-assign]
    backbone.load_model = load_and_write
    distributed.start(torch.device("cpu"))
    codes = [cli.main(command) for command in json.loads(Path(sys.argv[1]).read_text())]
    if any(codes):
        print(f"exit codes {codes}")
    distributed.leave(int(any(codes)))


def train_step_and_write(trainer: Trainer, step: int) -> dict[str, float]:
    metrics = train_step(trainer, step)
    held, whole = zip(*map(sizes, trainer._trained.backbone.model.parameters()), strict=True)
    file = trainer._run.path / f"held-{distributed.rank()}.json"
    file.write_text(json.dumps([sum(held), sum(whole)]))
    trained = list(trainer._trainable.values())
    state = {
        "gradients": [weight.grad for weight in trained],
        "moments": [trainer._optimizer.state[weight][name] for weight in trained for name in ("exp_avg", "exp_avg_sq")],
    }
    counts = {name: [sum(numbers) for numbers in zip(*map(sizes, found), strict=True)] for name, found in state.items()}
    (trainer._run.path / f"state-{distributed.rank()}.json").write_text(json.dumps(counts))
    return metrics


def load_and_write(*arguments: Any) -> Any:
    Path(f"read-{distributed.rank()}").touch()
    return load_model(*arguments)


def sizes(weight: Any) -> tuple[int, int]:
    """How many numbers of a weight this process holds, and how many there are."""
    held = weight.to_local() if isinstance(weight, DTensor) else weight
    return held.numel(), weight.numel()


def out_of_memory() -> None:
    """Rank 1 has memory for one row at a time."""
    NashMD.loss = hungry  # type: ignore[method-assign]
    cli.entry()


def hungry(algorithm: NashMD, batch: Any) -> Any:
    if distributed.rank() == 1 and len(batch.prompts) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return loss(algorithm, batch)
