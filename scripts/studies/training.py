"""The runs of a study: each in a folder of its own, so that what is finished is not trained again."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from alignrun.errors import InputError, RunError


@dataclass(frozen=True, slots=True)
class Job:
    """A run of `alignrun` in a folder."""

    folder: Path
    arguments: tuple[str, ...]

    @property
    def log(self) -> Path:
        """What its commands print."""
        return self.folder.with_suffix(".log")


def labelled_pairs(train: Path, test: Path) -> tuple[str, ...]:
    """The settings of two files of pairs with a column `probability`, P(chosen ≻ rejected)."""
    return "data=jsonl", f"data.path={train}", f"data.eval_path={test}", "data.columns.label=probability"


def alignrun(*arguments: str, log: Path, at_once: int = 1) -> None:
    """A command, with its share of the machine's threads. Raises RunError if it fails; the log has its messages."""
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        command = [sys.executable, "-m", "alignrun", *arguments]
        code = subprocess.run(command, check=False, stdout=file, stderr=file, env=environment).returncode
    if code:
        raise RunError(f"a run failed: {log} says why")


def finish(job: Job, at_once: int) -> float:
    """Run or resume a job; the seconds that all its steps took.

    Raises InputError if its folder is a run with other settings, and as `alignrun`.
    """
    arguments, typed = (*job.arguments, f"run.dir={job.folder}"), job.folder / "overrides.yaml"
    begun = (job.folder / "config.yaml").is_file()  # a run that is killed before has nothing to resume
    if typed.is_file() and yaml.safe_load(typed.read_text("utf-8")) != list(arguments):
        raise InputError(f"{job.folder} is a run with other settings: choose another --folder, or remove it")
    if not (job.folder / "summary.json").is_file():
        alignrun(*(("resume", str(job.folder)) if begun else arguments), log=job.log, at_once=at_once)
    return sum(step["seconds"] for step in metrics_of(job.folder))


def metrics_of(run: Path) -> list[dict[str, float]]:
    """The metrics of every training step."""
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [step for step in map(json.loads, lines) if "loss" in step]
