"""Metrics and samples: always to JSON Lines in the run, and also to wandb, which may fail but never stops a run."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignrun.config import TrackerConfig, WandbMode
from alignrun.errors import InputError, one_line
from alignrun.files import read_json
from alignrun.run_directory import RunDirectory, append_jsonl, truncate_jsonl, write_text_atomic
from alignrun.terminal import say
from alignrun.types import Sample
from alignrun.working_directory import elsewhere

INIT_TIMEOUT = 15.0
"""Seconds that wandb may take to reach its server at the start."""
FINISH_TIMEOUT = 120.0
"""Seconds that wandb may take to upload the rest at the end."""
COLUMNS = ("prompt", "first", "second", "preference")


class JsonlTracker:
    """metrics.jsonl and samples.jsonl: one row at a time, each on the disk before the next step."""

    def __init__(self, metrics_file: Path, samples_file: Path) -> None:
        self.metrics_file = metrics_file
        self.samples_file = samples_file

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row; a value that is not finite becomes null, since JSON has no name for it."""
        values = {name: float(value) for name, value in metrics.items()}
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        append_jsonl(self.metrics_file, {"step": step} | row)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Add a row for each sample."""
        for sample in samples:
            append_jsonl(self.samples_file, {"step": step} | {name: getattr(sample, name) for name in COLUMNS})


class WandbTracker:
    """An open wandb run that logs at our steps."""

    def __init__(self, run: Any, location: str) -> None:
        self.run = run
        self.location = location

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add to the row of `step`."""
        self.run.log({name: float(value) for name, value in metrics.items()}, step=step)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Log a table of the samples at `step`."""
        import wandb

        rows = [[step, *(getattr(sample, name) for name in COLUMNS)] for sample in samples]
        self.run.log({"samples": wandb.Table(columns=["step", *COLUMNS], data=rows)}, step=step)

    def finish(self, summary: Mapping[str, float | str], exit_code: int) -> None:
        """Write the summary and wait for the upload."""
        self.run.summary.update(dict(summary))
        self.run.finish(exit_code=exit_code)


class Tracking:
    """Both trackers as one, or neither. Steps must not decrease: wandb drops a row that comes after a later one."""

    def __init__(
        self, jsonl: JsonlTracker | None, wandb: WandbTracker | None, samples: int, notify: Callable[[str], None]
    ) -> None:
        self.jsonl = jsonl
        self.wandb = wandb
        self.samples = samples
        self.location = wandb.location if wandb else None
        """Where wandb has the run: its address, or the folder to give to `wandb sync`; None without wandb."""
        self._notify = notify

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step. Raises RunError where metrics.jsonl cannot be written."""
        if self.jsonl is not None:
            self.jsonl.log(step, metrics)
        self._try(lambda wandb: wandb.log(step, metrics))

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Record the first few samples (`tracker.samples`). Raises RunError where samples.jsonl cannot be written."""
        shown = samples[: self.samples]
        if shown and self.jsonl is not None:
            self.jsonl.log_samples(step, shown)
            self._try(lambda wandb: wandb.log_samples(step, shown))

    def log_panels(self, draw: Callable[[Any], None]) -> None:
        """Let `draw` put charts and tables on the open wandb run, where there is one."""
        self._try(lambda wandb: draw(wandb.run))

    def finish(self, summary: Mapping[str, float | str], exit_code: int = 0) -> None:
        """End the wandb run with final values for its overview; `exit_code` other than 0 marks it as failed."""
        self._try(lambda wandb: wandb.finish(summary, exit_code))
        self.wandb = None

    def _try(self, action: Callable[[WandbTracker], None]) -> None:
        if self.wandb is None:
            return
        try:
            action(self.wandb)
        except Exception as error:
            self.wandb = None
            self._notify(f"wandb failed and is left out from here on, metrics.jsonl goes on: {one_line(error)}")


def start_tracking(
    config: TrackerConfig,
    run: RunDirectory,
    resolved_config: dict[str, Any],
    *,
    resume_step: int | None,
    resume_evaluated: bool = True,
    notify: Callable[[str], None] | None = None,
) -> Tracking:
    """Open both trackers of a run; `resume_step` is the step of the checkpoint that a resumed run starts from.

    Rows that will be written again are dropped: those after `resume_step`, and its evaluation's unless
    `resume_evaluated`. wandb goes on with the same run id.
    `notify` gets one line for each thing the user should know (default: standard error). No failure of wandb is
    raised; a broken metrics.jsonl is an InputError.
    """
    notify = notify or say
    if resume_step is not None:
        drop_rows(run, resume_step, resume_evaluated)
    wandb_tracker = None
    try:
        wandb_tracker = _start_wandb(config, run, resolved_config, resume_step is not None, notify)
    except Exception as error:
        notify(f"wandb could not start, only metrics.jsonl is written: {one_line(error)}")
    if wandb_tracker:
        write_text_atomic(run.wandb_run_file, json.dumps({"id": wandb_tracker.run.id}) + "\n")
    return Tracking(JsonlTracker(run.metrics_file, run.samples_file), wandb_tracker, config.samples, notify)


def drop_rows(run: RunDirectory, step: int, evaluated: bool) -> None:
    """Drop the rows that a run going on from `step` writes again: those of later steps, and the evaluation of this one
    unless it is `evaluated`. Raises InputError for a broken line."""
    for file in (run.metrics_file, run.samples_file):
        truncate_jsonl(file, step, lambda row: not evaluated and _is_evaluation(row))


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    return "preference" in row or any(name.startswith("eval/") for name in row)


def _start_wandb(
    config: TrackerConfig,
    run: RunDirectory,
    resolved_config: dict[str, Any],
    resuming: bool,
    notify: Callable[[str], None],
) -> WandbTracker | None:
    """The wandb run, offline where it cannot be online; None where the user wants none."""
    mode = os.environ.get("WANDB_MODE", "") if config.mode is WandbMode.auto else config.mode.value
    if mode == "disabled":
        return None
    import wandb  # here, since it takes half a second that nobody should pay who does not use it

    # A configuration that says online outranks an environment that says offline, as in wandb itself.
    wish = {"mode": "online"} if config.mode is WandbMode.online else {}
    with elsewhere():  # it would take the server's address, to which it sends the key, from the current folder
        settings = wandb.setup(wandb.Settings(silent=True, **wish)).settings
    mode = mode or settings.mode
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if mode == "disabled":
        return None
    upload = f"upload it later with `wandb sync {run.wandb}/offline-run-*`"
    if mode != "offline" and (reason := _no_credentials(wandb)):
        mode = "offline"
        notify(f"wandb: {reason}, so the run is recorded offline; {upload}")
    run_id = _previous_id(run) if resuming else None
    arguments: dict[str, Any] = {
        "dir": str(run.path),
        "project": config.project,
        "entity": config.entity,
        "group": config.group,
        "tags": list(config.tags) or None,
        "name": run.path.name,
        "config": resolved_config,
        "id": run_id,
        "resume": "allow" if run_id else None,
        "reinit": "create_new",  # never another run that this process may have open
        "settings": wandb.Settings(
            console="off",
            use_dot_wandb=False,
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            finish_timeout_raises=True,
        ),
    }
    try:
        opened = wandb.init(**arguments | {"mode": mode})
    except Exception as error:
        if mode == "offline":
            raise
        notify(f"wandb: could not go online, so the run is recorded offline ({one_line(error, 120)}); {upload}")
        # The background process of wandb goes on trying, and holds the run id, until it ends.
        with contextlib.suppress(SystemExit):
            wandb.teardown()
        with elsewhere():
            wandb.setup(wandb.Settings(silent=True))
        opened = wandb.init(**arguments | {"mode": "offline"})
    return WandbTracker(opened, opened.url or str(Path(opened.dir).parent))


def _no_credentials(wandb: Any) -> str | None:
    """Why wandb cannot be online, or None. It never asks at the terminal."""
    try:
        return None if wandb.login(verify=False, prompt=False) else "no API key found"
    except Exception as error:
        return one_line(error)


def _previous_id(run: RunDirectory) -> str | None:
    """The id of the wandb run to go on with; None where there was none."""
    try:
        found = read_json(run.wandb_run_file)["id"]
    except (InputError, LookupError, TypeError):
        return None
    return found if isinstance(found, str) else None
