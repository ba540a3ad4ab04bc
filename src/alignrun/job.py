"""What a sweep keeps beside each of its runs: how it was started and how it ended, in job.json."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from alignrun.errors import InputError
from alignrun.files import is_step, read_json
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
    if not os.path.lexists(file):
        return None
    advice = "delete it, and the same sweep makes the run again"
    found = read_json(file, advice)
    try:
        job = Job(found["exit_code"], tuple(map(str, found.get("overrides", ()))), found.get("pruned"))
    except (LookupError, TypeError, AttributeError):
        raise InputError(f"{file} does not say how a run ended: {advice}") from None
    if type(job.exit_code) is not int or not (job.pruned is None or is_step(job.pruned)):
        raise InputError(f"{file} does not say how a run ended: {advice}")
    return job
