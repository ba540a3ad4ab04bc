"""Whether a run is running, and how it ended otherwise."""

import contextlib
import fcntl
import json
import math
import os
from enum import Enum
from pathlib import Path

from alignrun.errors import AlignrunError, InputError, RunError, one_line
from alignrun.run.directory import RunDirectory, write_text_atomic
from alignrun.security.files import open_regular, read_json


class State(Enum):
    """The state of a run."""

    running = "running"
    finished = "finished"
    stopped = "not running"
    failed = "failed"
    unknown = "running or not: this file system has no locks"

    @property
    def style(self) -> str:
        """Its colour on a terminal."""
        return {State.running: "green", State.finished: "cyan", State.failed: "red"}.get(self, "yellow")


def state_of(run: RunDirectory, steps: float) -> State:
    """The state of a run with this many planned steps."""
    held = is_held(run.path / ".lock")  # before the summary, which is written under the lock
    if held:
        return State.running
    if finished_step(run) >= steps:
        return State.finished
    if held is None:
        return State.unknown
    return State.failed if read_failure(run) else State.stopped


def finished_step(run: RunDirectory) -> float:
    """The step at which the run finished; −∞ if it has not, or its summary cannot be read."""
    try:
        return float(read_json(run.summary_file)["step"])
    except (InputError, ValueError, LookupError, TypeError, OverflowError):
        return -math.inf


def write_failure(run: RunDirectory, error: Exception) -> None:
    """Record why a run has failed; resuming it removes the record. A full disk leaves none."""
    known = isinstance(error, AlignrunError)
    reason = one_line(error, 1000) if known else f"{type(error).__name__}: {one_line(error, 1000)}"
    with contextlib.suppress(RunError):
        write_text_atomic(run.failure_file, json.dumps({"error": reason}, ensure_ascii=False) + "\n")


def read_failure(run: RunDirectory) -> str:
    """Why a run has failed; empty if it has not."""
    if not os.path.lexists(run.failure_file):
        return ""
    try:
        return str(read_json(run.failure_file)["error"])
    except (InputError, LookupError, TypeError):
        return f"{run.failure_file.name} cannot be read"


def is_held(lock: Path) -> bool | None:
    """Whether a process holds the lock of a run; None if the file system has no locks.

    A shared lock is refused while a process writes. It is released immediately, so that it never blocks a resume.
    """
    try:
        descriptor = open_regular(lock)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
