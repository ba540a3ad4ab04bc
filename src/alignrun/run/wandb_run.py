"""A run on wandb: what it is called there, how its metrics are named, and whether it can be online.

wandb's own variables (WANDB_PROJECT, WANDB_NAME, …) and settings files outrank the defaults here, and values of
`tracker.*` outrank them. What a training batch measures stands under `train/` and what held-out prompts measure under
`eval/`, so that neither replaces the other in the summary.
"""

import contextlib
import os
import tempfile
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

PROJECT = "alignrun"
INIT_TIMEOUT = 15.0
"""Seconds that wandb may take to reach its server at the start."""
FINISH_TIMEOUT = 120.0
"""Seconds that wandb may take to upload the rest at the end."""
UPLOAD_TIMEOUT = 1800.0
"""The same where adapters are part of it."""
TAG_LENGTH = 64
"""Characters that wandb accepts in a tag."""
SAMPLE_COLUMNS = {
    "prompt": "prompt",
    "first": "policy completion",
    "second": "reference completion",
    "preference": "P(policy is preferred)",
}
"""The fields of a sample, and what wandb's table calls them."""


class WandbTracker:
    """An open wandb run. Its charts have our steps as their x-axis, so that a resumed run may log a step again."""

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
        """What a resumed run must know: its id, name and group."""
        self._artifact, self._adapter, self._best = artifact, adapter, best

    def define(self) -> None:
        """Name the step, and what the overview shows next to the last value: the best of what a policy is judged by."""
        self.run.define_metric("step", hidden=True)
        for prefix in ("train", "eval"):
            self.run.define_metric(f"{prefix}/*", step_metric="step")
        for name, sign in MERITS:
            best = "max" if sign > 0 else "min"
            self.run.define_metric(f"eval/{name}", step_metric="step", summary=f"last,{best}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row for `step`."""
        named = {name if name.startswith("eval/") else f"train/{name}": float(metrics[name]) for name in metrics}
        self.run.log({"step": step} | named)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Log a table of the samples at `step`."""
        import wandb

        rows = [[step, *(getattr(sample, name) for name in SAMPLE_COLUMNS)] for sample in samples]
        table = wandb.Table(columns=["step", *SAMPLE_COLUMNS.values()], data=rows)
        self.run.log({"step": step, "eval/samples": table})

    def log_adapter(self, step: int, metrics: Mapping[str, float], save: Callable[[Path], None]) -> None:
        """Keep the adapter of an evaluation that is the best so far, where `tracker.artifact` says so."""
        value = merit(metrics)
        if self._artifact is not Artifact.best or value is None or (self._best is not None and value <= self._best):
            return
        self._best = value
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder) / "adapter")
            self._upload(Path(folder) / "adapter", ["best", f"step-{step}"], {"step": step, **metrics})

    def finish(self, summary: Mapping[str, float | str], exit_code: int) -> None:
        """Write the last evaluation into the summary, keep the adapter if wanted, and wait for the upload."""
        ruled = {name for name, _ in MERITS}  # whose summary wandb makes of what was logged
        self.run.summary.update({f"eval/{name}": value for name, value in summary.items() if name not in ruled})
        if self._artifact is Artifact.end and exit_code == 0 and self._adapter.is_dir():
            self._upload(self._adapter, ["end"], dict(summary))
        self.run.finish(exit_code=exit_code)

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
    """The wandb run, offline where it cannot be online; None where the user wants none.

    Args:
        config: what the user asks of wandb.
        run: where its files go, and what it was called before.
        resolved_config: the whole configuration, which wandb shows.
        notify: gets one line for each thing the user should know.
        resuming: whether to go on with the wandb run that `run` began.
        best: the merit of the best evaluation so far.
    """
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
    folder = Path(settings.root_dir) if os.environ.get("WANDB_DIR") else run.path
    upload = f"upload it later with `wandb sync {folder / 'wandb'}/offline-run-*`"
    if mode != "offline" and (reason := _no_credentials(wandb)):
        mode = "offline"
        notify(f"wandb: {reason}, so the run is recorded offline; {upload}")
    before = _read(run) if resuming else {}
    arguments: dict[str, Any] = {
        **names(config, settings, run.path.name, resolved_config, before),
        "dir": str(folder),
        "config": resolved_config,
        "id": before.get("id"),
        "resume": "allow" if "id" in before else None,
        "reinit": "create_new",  # never another run that this process may have open
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
        # The background process of wandb goes on trying, and holds the run id, until it ends.
        with contextlib.suppress(SystemExit):
            wandb.teardown()
        with elsewhere():
            wandb.setup(wandb.Settings(silent=True))
        opened = wandb.init(**arguments | {"mode": "offline"})
    kept = {"id": opened.id} | {name: arguments[name] for name in ("name", "group") if arguments[name]}
    location = opened.url or str(Path(opened.dir).parent)
    return WandbTracker(opened, location, kept, config.artifact, run.adapter, best)


def names(
    config: TrackerConfig, settings: Any, folder: str, resolved_config: Mapping[str, Any], before: Mapping[str, str]
) -> dict[str, Any]:
    """What a run is called, by the names of wandb.init.

    A value of `tracker.*` comes first, then what a resumed run was called before, then wandb's own settings, which a
    sweep makes use of for what they do not say, and then the default.
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


def _no_credentials(wandb: Any) -> str | None:
    """Why wandb cannot be online, or None. It never asks at the terminal."""
    try:
        return None if wandb.login(verify=False, prompt=False) else "no API key found"
    except Exception as error:
        return one_line(error)


def _read(run: RunDirectory) -> dict[str, str]:
    """The id, name and group of the wandb run to go on with; nothing where there was none."""
    try:
        found = read_json(run.wandb_run_file)
        kept = {name: found[name] for name in ("id", "name", "group") if isinstance(found.get(name), str)}
    except (InputError, AttributeError):
        return {}
    return kept if "id" in kept else {}
