"""Metrics and samples: always written to JSON Lines, and also to wandb, whose failures never stop a run."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignrun.config import Artifact, TrackerConfig
from alignrun.errors import one_line
from alignrun.run.directory import RunDirectory, append_jsonl, read_jsonl, truncate_jsonl, write_text_atomic
from alignrun.run.merit import merit_of_row
from alignrun.run.wandb_run import WandbTracker, start_wandb
from alignrun.security.terminal import say
from alignrun.types import Sample

COLUMNS, ENDS = ("prompt", "first", "second", "preference"), ("first_ended", "second_ended")


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON, where values that are not finite become null."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


class JsonlTracker:
    """metrics.jsonl and samples.jsonl: one row at a time, each on disk before the next step."""

    def __init__(self, metrics_file: Path, samples_file: Path) -> None:
        self.metrics_file = metrics_file
        self.samples_file = samples_file

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row."""
        append_jsonl(self.metrics_file, {"step": step} | finite(metrics))

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Append a row per sample."""
        for sample in samples:
            row = {name: getattr(sample, name) for name in COLUMNS}
            ends = {name: ended for name in ENDS if (ended := getattr(sample, name)) is not None}
            append_jsonl(self.samples_file, {"step": step} | row | ends)


class Tracking:
    """Both trackers behind one interface; on other processes than the main one, neither."""

    def __init__(
        self, jsonl: JsonlTracker | None, wandb: WandbTracker | None, samples: int, notify: Callable[[str], None]
    ) -> None:
        self.jsonl = jsonl
        self.wandb = wandb
        self.samples = samples
        self.location = wandb.location if wandb else None
        """The run on wandb: its URL, or the folder for `wandb sync`; None without wandb."""
        self._notify = notify

    def define(self) -> None:
        """Define the metrics on wandb, once, before the first row."""
        self._try(lambda wandb: wandb.define())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step. Raises RunError if metrics.jsonl cannot be written."""
        if self.jsonl is not None:
            self.jsonl.log(step, metrics)
        self._try(lambda wandb: wandb.log(step, metrics))

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Record the first few samples (`tracker.samples`). Raises RunError if samples.jsonl cannot be written."""
        shown = samples[: self.samples]
        if shown and self.jsonl is not None:
            self.jsonl.log_samples(step, shown)
            self._try(lambda wandb: wandb.log_samples(step, shown))

    def log_adapter(self, step: int, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        """Upload the adapter that `save` writes, if its evaluation is the best so far (`tracker.artifact=best`)."""
        self._try(lambda wandb: wandb.log_adapter(step, metrics, save))

    def log_panels(self, draw: Callable[[Any], None]) -> None:
        """Let `draw` log charts and tables to the wandb run, if one is open."""
        self._try(lambda wandb: draw(wandb.run))

    def finish(self, summary: Mapping[str, float | str], exit_code: int = 0) -> None:
        """Finish the wandb run with the last evaluation in its summary; a non-zero `exit_code` marks it as failed."""
        self._try(lambda wandb: wandb.finish(summary, exit_code))
        self.wandb = None

    def _try(self, action: Callable[[WandbTracker], None]) -> None:
        if self.wandb is None:
            return
        try:
            action(self.wandb)
        except Exception as error:
            self.wandb.abandon()
            self.wandb = None
            self._notify(f"wandb failed and is disabled from here on, metrics.jsonl continues: {one_line(error)}")


def start_tracking(
    config: TrackerConfig,
    run: RunDirectory,
    resolved_config: dict[str, Any],
    *,
    resume_step: int | None,
    resume_evaluated: bool = True,
    notify: Callable[[str], None] | None = None,
) -> Tracking:
    """Open both trackers of a run; `resume_step` is the checkpoint step that a resumed run starts from.

    Rows that will be written again are dropped: those after `resume_step`, and the evaluation of that step unless
    `resume_evaluated`. wandb continues with the same run id.
    `notify` gets one line per notice to the user (default: standard error). Failures of wandb are never raised; a
    broken metrics.jsonl is an InputError.
    """
    notify = notify or say
    if resume_step is not None:
        drop_rows(run, resume_step, resume_evaluated)
    wandb_tracker = None
    try:
        best = _best(run.metrics_file) if config.artifact is Artifact.best else None
        wandb_tracker = start_wandb(config, run, resolved_config, notify, resuming=resume_step is not None, best=best)
    except Exception as error:
        notify(f"wandb could not start, only metrics.jsonl is written: {one_line(error)}")
    else:
        if wandb_tracker is None and config.artifact is not Artifact.never:
            notify(f"tracker.artifact={config.artifact.value}: wandb is disabled, so no adapter is uploaded")
    if wandb_tracker:
        write_text_atomic(run.wandb_run_file, json.dumps(wandb_tracker.identity) + "\n")
    tracking = Tracking(JsonlTracker(run.metrics_file, run.samples_file), wandb_tracker, config.samples, notify)
    tracking.define()
    return tracking


def drop_rows(run: RunDirectory, step: int, evaluated: bool) -> None:
    """Drop the rows that a run continuing from `step` writes again: those of later steps, and the evaluation of this
    one unless `evaluated`. Raises InputError for a broken line."""
    for file in (run.metrics_file, run.samples_file):
        truncate_jsonl(file, step, lambda row: not evaluated and _is_evaluation(row))


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    return "preference" in row or any(name.startswith("eval/") for name in row)


def _best(metrics_file: Path) -> float | None:
    """The merit of the best recorded evaluation, after a check of the rows; None before the first one."""
    rows = [row for _, row in read_jsonl(metrics_file) if isinstance(row, dict)]
    found = map(merit_of_row, rows)
    return max((value for value in found if value is not None), default=None)
