"""The runs of a study: each in a folder of its own, so that what is finished is not trained again."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Job:
    """A command of `alignrun` that makes a folder."""

    folder: Path
    arguments: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end."""
        return (self.folder / "summary.json").is_file()


def finish(job: Job, at_once: int) -> float:
    """Run or resume a job with its share of the machine's threads; the seconds that all its steps took.

    Raises CalledProcessError; what the command printed is in the file RUN.log next to the folder.
    """
    if not job.finished:
        begun = any(job.folder.glob("checkpoints/step-*"))
        arguments = ("resume", str(job.folder)) if begun else (*job.arguments, f"run.dir={job.folder}")
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with job.folder.with_suffix(".log").open("a", encoding="utf-8") as log:
            subprocess.run(
                [sys.executable, "-m", "alignrun", *arguments], check=True, stdout=log, stderr=log, env=environment
            )
    return sum(step["seconds"] for step in metrics_of(job.folder))


def metrics_of(run: Path) -> list[dict[str, float]]:
    """The metrics of every training step."""
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [step for step in map(json.loads, lines) if "loss" in step]
