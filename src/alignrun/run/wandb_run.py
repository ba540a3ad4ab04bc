"""A run on wandb: its name, the names of its metrics, and whether it can be online.

wandb's own variables (WANDB_PROJECT, WANDB_NAME, …) and settings files take precedence over the defaults here, and
values of `tracker.*` over both. Metrics of training batches are named `train/…` and those of held-out prompts
`eval/…`, so that neither replaces the other in the summary.
"""

import atexit
import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignrun.config import Artifact, TrackerConfig, WandbMode
from alignrun.errors import InputError, one_line
from alignrun.run.directory import RunDirectory
from alignrun.run.merit import MERITS, merit
from alignrun.security.files import read_json
from alignrun.security.working_directory import elsewhere
from alignrun.types import Sample

PATIENCE = 10.0
"""Seconds that wandb's process gets to end."""
PROJECT = "alignrun"
INIT_TIMEOUT = 15.0
"""Seconds that wandb may take to connect."""
FINISH_TIMEOUT = 120.0
"""Seconds that wandb may take to finish its uploads at the end."""
UPLOAD_TIMEOUT = 1800.0
"""Seconds for the same if it uploads adapters."""
TAG_LENGTH = 64
"""Maximum length of a wandb tag, in characters."""
SAMPLE_COLUMNS = {
    "prompt": "prompt",
    "first": "policy completion",
    "second": "reference completion",
    "preference": "P(policy is preferred)",
}
"""The fields of a sample → the columns of wandb's table."""


class WandbTracker:
    """An open wandb run. Its charts use our steps as x-axis, so that a resumed run may log a step again."""

    def __init__(
        self,
        run: Any,
        location: str,
        identity: Mapping[str, str],
        artifact: Artifact,
        adapter: Path,
        best: float | None,
    ) -> None:
        self.run = run
        self.location = location
        self.identity = identity
        """The id, name and group, which a resumed run needs."""
        self._artifact, self._adapter, self._best = artifact, adapter, best

    def define(self) -> None:
        """Define the step metric, and the best value of the ranking metrics as part of the summary."""
        self.run.define_metric("step", hidden=True)
        for prefix in ("train", "eval"):
            self.run.define_metric(f"{prefix}/*", step_metric="step")
        for name, sign in MERITS:
            best = "max" if sign > 0 else "min"
            self.run.define_metric(f"eval/{name}", step_metric="step", summary=f"last,{best}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log a row for `step`."""
        named = {name if name.startswith("eval/") else f"train/{name}": float(metrics[name]) for name in metrics}
        self.run.log({"step": step} | named)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Log a table of the samples at `step`."""
        import wandb

        rows = [[step, *(getattr(sample, name) for name in SAMPLE_COLUMNS)] for sample in samples]
        table = wandb.Table(columns=["step", *SAMPLE_COLUMNS.values()], data=rows)
        self.run.log({"step": step, "eval/samples": table})

    def log_adapter(self, step: int, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        """Upload the adapter if its evaluation is the best so far and `tracker.artifact` is best."""
        value = merit(metrics)
        if self._artifact is not Artifact.best or value is None or (self._best is not None and value <= self._best):
            return
        self._best = value
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder) / "adapter")
            self._upload(Path(folder) / "adapter", ["best", f"step-{step}"], {"step": step, **metrics})

    def finish(self, summary: Mapping[str, float | str], exit_code: int) -> None:
        """Write the last evaluation to the summary, upload the adapter if requested, and wait for the uploads."""
        ruled = {name for name, _ in MERITS}  # wandb computes their summary from the logged rows
        self.run.summary.update({f"eval/{name}": value for name, value in summary.items() if name not in ruled})
        if self._artifact is Artifact.end and exit_code == 0 and self._adapter.is_dir():
            self._upload(self._adapter, ["end"], dict(summary))
        self.run.finish(exit_code=exit_code)

    def abandon(self) -> None:
        """End wandb's process with this one, without a traceback: it may have crashed."""
        atexit.register(_end_process)  # runs before wandb's own hook, which it removes

    def _upload(self, folder: Path, aliases: list[str], metadata: dict[str, Any]) -> None:
        import wandb

        artifact = wandb.Artifact(f"adapter-{self.run.id}", type="model", metadata=metadata)
        artifact.add_dir(str(folder))
        self.run.log_artifact(artifact, aliases=aliases)


def start_wandb(
    config: TrackerConfig,
    run: RunDirectory,
    resolved_config: dict[str, Any],
    notify: Callable[[str], None],
    *,
    resuming: bool = False,
    best: float | None = None,
) -> WandbTracker | None:
    """Start the wandb run, offline if it cannot be online; None if the user has disabled it.

    Args:
        config: the user's settings.
        run: the folder for its files, and its earlier wandb id and name.
        resolved_config: the whole configuration, shown on wandb.
        notify: gets one line per notice to the user.
        resuming: whether to continue the wandb run that `run` started.
        best: the merit of the best evaluation so far.
    """
    mode = os.environ.get("WANDB_MODE", "") if config.mode is WandbMode.auto else config.mode.value
    if mode == "disabled":
        return None
    import wandb  # imported here because it takes half a second

    # An online mode in the configuration takes precedence over an offline one in the environment, as in wandb itself.
    wish = {"mode": "online"} if config.mode is WandbMode.online else {}
    with elsewhere():  # otherwise it could read the server's address, where it sends the key, from the current folder
        settings = wandb.setup(wandb.Settings(silent=True, **wish)).settings
    mode = mode or settings.mode
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if mode == "disabled":
        return None
    folder = Path(settings.root_dir) if os.environ.get("WANDB_DIR") else run.path
    upload = f"upload it later with `wandb sync {folder / 'wandb'}/offline-run-*`"
    if mode != "offline" and (reason := _refused(wandb)):
        mode = "offline"
        notify(f"wandb: {reason}, so the run is recorded offline; {upload}")
    before = _read(run) if resuming else {}
    arguments: dict[str, Any] = {
        **names(config, settings, run.path.name, resolved_config, before),
        "dir": str(folder),
        "config": resolved_config,
        "id": before.get("id"),
        "resume": "allow" if "id" in before else None,
        "reinit": "create_new",  # never reuse another run open in this process
        "settings": wandb.Settings(
            console="off",
            use_dot_wandb=False,
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT if config.artifact is Artifact.never else UPLOAD_TIMEOUT,
            finish_timeout_raises=True,
        ),
    }
    try:
        opened = wandb.init(**arguments | {"mode": mode})
    except Exception as error:
        if mode == "offline":
            raise
        notify(f"wandb: could not go online, so the run is recorded offline ({one_line(error, 120)}); {upload}")
        _restart(wandb)
        opened = wandb.init(**arguments | {"mode": "offline"})
    kept = {"id": opened.id} | {name: arguments[name] for name in ("name", "group") if arguments[name]}
    location = opened.url or str(Path(opened.dir).parent)
    return WandbTracker(opened, location, kept, config.artifact, run.adapter, best)


def _restart(wandb: Any) -> None:
    """Replace wandb's process, which would keep retrying, and keep the run id."""
    _end_process()
    with elsewhere():
        wandb.setup(wandb.Settings(silent=True))


def _end_process() -> None:
    """End wandb's process, by force if it takes longer than ten seconds: wandb would wait for it without a limit."""
    import wandb
    from wandb.sdk import wandb_setup

    connection = getattr(wandb_setup._singleton, "_connection", None)
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    timer = threading.Timer(PATIENCE, process.kill) if process else None
    with contextlib.suppress(Exception, SystemExit):
        if timer:
            timer.daemon = True
            timer.start()
        wandb.teardown()
    if timer:
        timer.cancel()


def names(
    config: TrackerConfig, settings: Any, folder: str, resolved_config: Mapping[str, Any], before: Mapping[str, str]
) -> dict[str, Any]:
    """The name, group and tags of a run, as arguments of wandb.init.

    Order of precedence: `tracker.*`, the earlier name of a resumed run, wandb's own settings (a sweep fills in those
    that are unset), the default.
    """
    sections = [resolved_config.get(part) for part in ("algo", "model", "data", "preference")]
    chosen = [section.get("name") for section in sections if isinstance(section, Mapping)]
    own = [name[:TAG_LENGTH] for name in chosen if isinstance(name, str) and name not in ("", "none")]
    tags = dict.fromkeys([*(config.tags or settings.run_tags or ()), *own])
    return {
        "project": config.project or settings.project or PROJECT,
        "entity": config.entity or settings.entity,
        "group": config.group or before.get("group") or settings.run_group,
        "name": config.name or before.get("name") or settings.run_name or folder,
        "job_type": settings.run_job_type or _job_type(resolved_config),
        "tags": list(tags) or None,
    }


def _job_type(resolved_config: Mapping[str, Any]) -> str:
    algo = resolved_config.get("algo")
    if not isinstance(algo, Mapping):
        return "eval"
    return "exploit" if algo.get("name") == "best_response" else "train"


def _refused(wandb: Any) -> str | None:
    """Why wandb cannot be online, or None. It never prompts, and asks the server for ten seconds at most.

    wandb's process crashes some time after the start if the server answers without knowing the user.
    """
    try:
        return None if wandb.login(verify=True, prompt=False) else "no API key found"
    except Exception as error:
        _restart(wandb)
        return f"could not go online ({one_line(error, 160)})"


def _read(run: RunDirectory) -> dict[str, str]:
    """The id, name and group of the wandb run to continue; empty if there was none."""
    try:
        found = read_json(run.wandb_run_file)
        kept = {name: found[name] for name in ("id", "name", "group") if isinstance(found.get(name), str)}
    except (InputError, AttributeError):
        return {}
    return kept if "id" in kept else {}
