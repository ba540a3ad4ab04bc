"""Commands of alignrun, one after another in every process of a job: `torchrun … several.py COMMANDS.json`.

Beside each run that trains, the process writes how many weights it holds after a step.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from alignrun import cli, distributed
from alignrun.reports import svg
from alignrun.training.trainer import Trainer

accumulate = Trainer.accumulate


def accumulate_and_tell(trainer: Trainer, batch: Any) -> Any:
    measured = accumulate(trainer, batch)
    held, whole = zip(*map(sizes, trainer._trained.backbone.model.parameters()), strict=True)
    file = trainer._run.path / f"held-{distributed.rank()}.json"
    file.write_text(json.dumps([sum(held), sum(whole)]))
    return measured


def sizes(weight: Any) -> tuple[int, int]:
    """How many numbers of a weight this process holds, and how many there are."""
    if hasattr(weight, "ds_tensor"):  # split by DeepSpeed
        return max(weight.numel(), weight.ds_tensor.numel()), weight.ds_numel
    held = weight.to_local() if isinstance(weight, DTensor) else weight
    return held.numel(), weight.numel()


if __name__ == "__main__":
    Trainer.accumulate = accumulate_and_tell  # type: ignore[method-assign]
    svg.as_svg = lambda _: '<svg viewBox="0 0 1 1"/>'  # no test looks at the figures of these runs
    distributed.start(torch.device("cpu"))
    codes = [cli.main(command) for command in json.loads(Path(sys.argv[1]).read_text())]
    if any(codes):
        print(f"exit codes {codes}")
    distributed.leave(int(any(codes)))
