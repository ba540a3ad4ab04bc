"""The files a sweep keeps in each of its runs: member.json identifies the run, and job.json says how it ended.

Its overrides identify a member. They are written once and never changed; the name of its folder has no meaning.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from alignrun.errors import InputError
from alignrun.run.directory import RunDirectory, write_text_atomic
from alignrun.security.files import is_step, read_json

MEMBER, JOB = "member.json", "job.json"


@dataclass(frozen=True, slots=True)
class Job:
    """An ended run of a sweep."""

    exit_code: int
    overrides: tuple[str, ...] = ()
    pruned: int | None = None
    """The step at which the sweep's pruner stopped it; it has an exit code too."""

    @property
    def failed(self) -> bool:
        """Whether it failed and was not pruned."""
        return self.exit_code != 0 and self.pruned is None


def write_job(directory: Path, job: Job) -> None:
    """Write job.json. Raises RunError if it cannot be written."""
    write_text_atomic(directory / JOB, json.dumps(asdict(job)))


def read_job(directory: Path) -> Job | None:
    """Read job.json; None while the run continues."""
    file = directory / JOB
    if not os.path.lexists(file):
        return None
    advice = "delete it, and the same sweep repeats the run"
    found = read_json(file, advice)
    try:
        job = Job(found["exit_code"], tuple(map(str, found.get("overrides", ()))), found.get("pruned"))
    except (LookupError, TypeError, AttributeError):
        raise InputError(f"{file} does not say how a run ended: {advice}") from None
    if type(job.exit_code) is not int or not (job.pruned is None or is_step(job.pruned)):
        raise InputError(f"{file} does not say how a run ended: {advice}")
    return job


def state(directory: Path) -> Job | None:
    """How a run of a sweep ended, whether the sweep or the user ran it last; None if it has not ended.

    A summary means that it finished, even if it was resumed by hand; a finished run that was resumed since has none.
    """
    job = read_job(directory)
    if RunDirectory(directory).summary_file.is_file():
        return Job(0, () if job is None else job.overrides)
    return None if job is not None and job.exit_code == 0 else job


def members(sweep: Path) -> list[Path]:
    """The directories of a sweep's runs, in the order of their numbers."""
    found = {file.parent for name in (MEMBER, JOB) for file in sweep.rglob(name)}
    return sorted(found, key=lambda path: (len(str(path)), str(path)))


def settle_in(sweep: Path, name: str, overrides: Sequence[str]) -> Path:
    """The directory of the run with these overrides: the existing one, or a new one, called `name` if that is free.

    An existing directory of another run is never reused: the new one gets the next number.
    """
    for directory in [*members(sweep), sweep / name]:
        known = started_with(directory)
        if known is not None and keyed(known) == keyed(overrides):
            _sign(directory, known)
            return directory
    return next(directory for directory in _places(sweep, name) if _claim(directory, overrides))


def keyed(overrides: Sequence[str]) -> dict[str, str]:
    """Key → value, as written; the last one of repeated keys takes precedence."""
    return {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}


def started_with(directory: Path) -> list[str] | None:
    """The overrides that identify a run of a sweep: those of its first start; None if there is no run."""
    with contextlib.suppress(InputError, LookupError, TypeError):
        return list(map(str, read_json(directory / MEMBER)["overrides"]))
    job = read_job(directory)  # an earlier version kept them there
    return list(job.overrides) if job is not None and job.overrides else recorded(directory)


def recorded(directory: Path) -> list[str] | None:
    """The overrides that the run itself has recorded, including those of a later `alignrun resume`."""
    stored = RunDirectory(directory).read_overrides()
    return None if stored is None else [override for override in stored if not override.startswith(("run.dir=", "--"))]


def _places(sweep: Path, name: str) -> Iterator[Path]:
    yield sweep / name
    for number in count(int(name) + 1 if name.isdecimal() else 2):
        yield sweep / (str(number) if name.isdecimal() else f"{name}_{number}")


def _claim(directory: Path, overrides: Sequence[str]) -> bool:
    """Claim a directory for a new run; False if another run has it, even one started at the same time."""
    directory.mkdir(parents=True, exist_ok=True)
    if RunDirectory(directory).config_file.exists() or (directory / JOB).exists():
        return False
    return _sign(directory, overrides)


def _sign(directory: Path, overrides: Sequence[str]) -> bool:
    """Write member.json once; False if it exists."""
    try:
        with (directory / MEMBER).open("x", encoding="utf-8") as file:
            file.write(json.dumps({"overrides": list(overrides)}))
    except FileExistsError:
        return False
    return True
