"""Three steps of the command that README begins with, with random weights and a free judge."""

import json
import math

import torch

from alignrun import cli
from alignrun.launch.compose import load
from alignrun.planning.plan import make_plan
from gpu_checks.measure import peak_bytes
from gpu_checks.report import Section
from gpu_checks.subject import Subject, random_weights

GIB = 2**30
STEPS = 3
ESTIMATE = "46 s of training and 30 to 60 s of sampling on one H200 (estimates)"


def run(subject: Subject, section: Section, left: float) -> None:
    """It ends well, in the memory that was planned."""
    subject.release()
    folder = subject.folder / "headline"
    overrides = [f"train.steps={STEPS}", "train.checkpoint_every=0", "evaluation.every=0", "optim.warmup_steps=0"]
    settings = subject.settings(*overrides, *subject.scale.headline)
    codes: list[int] = []

    def train() -> None:
        with random_weights():
            codes.append(cli.main([*settings, f"run.dir={folder}"]))

    measured = peak_bytes(train, subject.device)
    section.check("exit code", codes[0], "0", codes == [0])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [row for row in rows if "loss" in row]
    section.check("steps", len(steps), str(STEPS), len(steps) == STEPS)
    section.check("losses", [row["loss"] for row in steps], "finite", all(math.isfinite(row["loss"]) for row in steps))
    section.note("seconds of the last step", steps[-1]["seconds"], ESTIMATE if subject.large else "")
    section.note("completion tokens trained on, a second", steps[-1]["tokens_per_second"])
    # What the run chose for `auto` is in its configuration.
    planned = make_plan(load(folder / "config.yaml")).peak
    if subject.device.type == "cuda":
        section.near("peak in GiB", measured / GIB, planned / GIB, 0.15)
        section.note("memory of the card in GiB", torch.cuda.get_device_properties(subject.device).total_memory / GIB)
    else:  # the optimiser's moments and the base are most of a small model's, and the profiler misses tensors read
        section.note("peak in GiB", measured / GIB, f"{planned / GIB:.4g}")
