"""Commands of alignrun, one after another in every process of a job: `torchrun … several.py COMMANDS.json`.

Beside each run that trains, the process writes how many weights it holds.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from alignrun import cli, processes
from alignrun.trainer import Outcome, Trainer

fit = Trainer.fit


def fit_and_tell(trainer: Trainer, *arguments: Any) -> Outcome:
    model = trainer._trained.backbone.model
    held = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    file = trainer._run.path / f"held-{processes.rank()}.json"
    file.write_text(json.dumps([sum(part.numel() for part in held), sum(part.numel() for part in model.parameters())]))
    return fit(trainer, *arguments)


if __name__ == "__main__":
    Trainer.fit = fit_and_tell  # type: ignore[method-assign]
    processes.start(torch.device("cpu"))
    codes = [cli.main(command) for command in json.loads(Path(sys.argv[1]).read_text())]
    if any(codes):
        print(f"exit codes {codes}")
    processes.leave(int(any(codes)))
