"""What a sweep keeps beside each of its runs: how it was started and how it ended, in job.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from alignrun.run_directory import write_text_atomic


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep that is over."""

    exit_code: int
    overrides: tuple[str, ...] = ()
    pruned: int | None = None
    """The step at which the sweep's pruner stopped it; it has an exit code all the same."""

    @property
    def failed(self) -> bool:
        """Whether it ended by itself, and not well."""
        return self.exit_code != 0 and self.pruned is None


def write_job(directory: Path, job: Job) -> None:
    """Keep it. Raises RunError where that cannot be written."""
    write_text_atomic(directory / "job.json", json.dumps(asdict(job)))


def read_job(directory: Path) -> Job | None:
    """What was kept in a run's directory; None while the run goes on."""
    file = directory / "job.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    return Job(found["exit_code"], tuple(found.get("overrides", ())), found.get("pruned"))
