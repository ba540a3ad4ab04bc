"""Follow a run's files on disk, reading only what is new."""

import math
import os
from array import array
from pathlib import Path
from typing import Any, NamedTuple

from alignrun.errors import InputError, one_line
from alignrun.evaluation.results import Estimate
from alignrun.reports.quantities import estimate
from alignrun.run.directory import RunDirectory
from alignrun.run.state import State, read_failure, state_of
from alignrun.security.files import ROWS_LIMIT, is_step, open_regular, parse_json, read_yaml

EVALUATION = "eval/"
JUDGED = ("win_rate", "accuracy")
"""Evaluation metrics with an interval; the first one that a run has is shown step by step."""
RECENT_STEPS = 20
"""Number of steps from which the time left is estimated."""


MOST_METRICS = 500
"""Limit for training and for evaluation metrics each: more than any run has, and few enough to draw."""


class EvaluationPoint(NamedTuple):
    """A win rate or an accuracy at a step, with its interval if there is one."""

    step: int
    found: Estimate


class Tail:
    """A JSON Lines file that another process appends to, and replaces when it resumes the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._offset = 0
        self._last = b""
        """The last line read: if it no longer precedes the offset, the file has been replaced."""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The rows since the last call, and whether the file was replaced, which invalidates all earlier rows.

        A half-written line is left for the next call; a line that is not a JSON object is skipped.
        """
        try:
            file = os.fdopen(open_regular(self._path), "rb")
        except OSError:  # missing, a link or a device
            gone = self._inode is not None
            self._rewind()
            return [], gone
        with file:
            inode = os.fstat(file.fileno()).st_ino
            file.seek(self._offset - len(self._last))
            anew = inode != self._inode or file.read(len(self._last)) != self._last
            if anew:
                self._rewind()
                file.seek(0)
            self._inode = inode
            lines = file.read(ROWS_LIMIT).split(b"\n")[:-1]
        if lines:
            self._offset += sum(len(line) + 1 for line in lines)
            self._last = lines[-1] + b"\n"
        return [row for line in lines if (row := _parsed(line)) is not None], anew

    def _rewind(self) -> None:
        self._inode, self._offset, self._last = None, 0, b""


class Followed:
    """A run directory and its records so far. Raises InputError if it is not a run.

    Attributes:
        training: every value of each training metric, in order; NaN if it was not finite.
        evaluation: the same for evaluations, without `eval/`.
        judged: the win rates, or if there are none the accuracies, with their steps and intervals.
        judged_name: which of the two; None while there is neither.
        left_out: whether there are more than `MOST_METRICS` metrics; only the first are shown.
        sample: the last row of samples.jsonl.
        failure: why the run has failed; empty if it has not.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._directory = RunDirectory.open(path)
        self.name = self._directory.path.name
        self._metrics, self._samples = Tail(self._directory.metrics_file), Tail(self._directory.samples_file)
        self._forget()
        self.sample: dict[str, Any] | None = None
        self.update()

    def update(self) -> None:
        """Read what is new. Raises InputError if the run has been deleted."""
        self._directory = RunDirectory.open(self.path)
        self._configure()
        state = state_of(self._directory, self.steps)  # before the rows: the last ones are written before it ends
        rows, anew = self._metrics.read()
        if anew:
            self._forget()
        for row in rows:
            self._record(row)
        samples, anew = self._samples.read()
        if samples or anew:
            self.sample = samples[-1] if samples else None
        self.state = state
        self.failure = read_failure(self._directory) if state is State.failed else ""

    @property
    def seconds_left(self) -> float | None:
        """Estimate for the remaining training steps, from the latest ones; None without any."""
        recent = [value for value in self.training.get("seconds", [])[-RECENT_STEPS:] if math.isfinite(value)]
        if not recent or self.state in (State.finished, State.stopped, State.failed):
            return None
        return sum(recent) / len(recent) * max(self.steps - self.step, 0)

    def _forget(self) -> None:
        self.step = 0
        self.training: dict[str, array[float]] = {}
        self.evaluation: dict[str, array[float]] = {}
        self.left_out = False
        self.judged_name: str | None = None
        self.judged: list[EvaluationPoint] = []

    def _configure(self) -> None:
        file = self._directory.config_file
        try:
            config = read_yaml(file)
            self.title = f"{config['algo']['name']} on {config['model']['name']}"
            self.steps = int(config["train"]["steps"])
            self.confidence = float(config["evaluation"]["confidence"])
            if not (is_step(self.steps) and 0 < self.confidence < 1):
                raise ValueError("train.steps or evaluation.confidence is out of range")
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise InputError(f"{file} cannot be read as a run's configuration ({one_line(error, 160)})") from error

    def _record(self, row: dict[str, Any]) -> None:
        numbers = {name: value for name, value in row.items() if value is None or isinstance(value, int | float)}
        values = {name: _number(value) for name, value in numbers.items() if name != "step"}
        step = int(row["step"]) if is_step(row.get("step")) else self.step
        self.step = step
        for name, value in values.items():
            kind = self.evaluation if name.startswith(EVALUATION) else self.training
            if len(kind) == MOST_METRICS and name.removeprefix(EVALUATION) not in kind:
                self.left_out = True
                continue
            kind.setdefault(name.removeprefix(EVALUATION), array("d")).append(value)
        if self.judged_name is None:
            self.judged_name = next((name for name in JUDGED if EVALUATION + name in values), None)
        name = str(self.judged_name)
        known = {key.removeprefix(EVALUATION): value for key, value in values.items() if math.isfinite(value)}
        if EVALUATION + name in values and name in known:
            whole = {f"{name}_low", f"{name}_high"} <= known.keys()
            self.judged.append(EvaluationPoint(step, estimate(name, known if whole else {name: known[name]})))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
