"""Stop runs of a sweep that fall behind the others, by Optuna's pruners on the recorded evaluations.

The pruners read only the runs' metrics.jsonl. So they work with any sweeper, and with any launcher whose runs share a
file system.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignrun.config import Config, Pruner, SweepConfig
from alignrun.errors import InputError
from alignrun.run.directory import RunDirectory
from alignrun.run.merit import merit_of_row
from alignrun.security.files import ROWS_LIMIT, is_step, parse_json, read_bytes, read_yaml
from alignrun.sweeps.job import read_job

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


def check_pruning(config: Config) -> None:
    """Refuse a pruner that cannot be applied.

    Raises:
        InputError: Optuna is not installed, or nothing is evaluated before a run ends.
    """
    rule = config.sweep.pruner
    if rule is Pruner.none:
        return
    if find_spec("optuna") is None:
        raise InputError(f"config: sweep.pruner={rule.value} needs optuna: pip install 'alignrun[sweep]'")
    if not 0 < config.evaluation.every < (config.train.steps or math.inf):
        raise InputError(
            f"config: sweep.pruner={rule.value} judges runs by evaluations during training: set evaluation.every below "
            f"train.steps={config.train.steps}"
        )


class Watch:
    """Compares a run of a sweep with the others while it trains."""

    def __init__(self, config: SweepConfig, steps: int, run: Path, sweep_directory: Path) -> None:
        """`steps` is 0 where only the configuration of the run itself says how many they are."""
        self._config, self._steps = config, steps
        self._run, self._sweep_directory = run, sweep_directory
        self._size, self._judged = 0, 0

    def __call__(self) -> int | None:
        """The step of the evaluation at which the run has fallen behind, or None; each evaluation is judged once.

        A run that has made its last evaluation is not stopped.
        """
        if self._config.pruner is Pruner.none:
            return None
        with contextlib.suppress(OSError, ValueError):  # a file may be half written: look again later
            size = RunDirectory(self._run).metrics_file.stat().st_size
            if size == self._size:
                return None
            newest = max(scores(self._run), default=0)
            behind = None
            self._steps = self._steps or int(read_yaml(RunDirectory(self._run).config_file)["train"]["steps"])
            if self._judged < newest < self._steps:
                others = [run for run in run_directories(self._sweep_directory) if run != self._run]
                behind = falls_behind(self._config, self._run, others, after=self._judged)
            self._size, self._judged = size, newest
            return behind
        return None


def run_directories(folder: Path) -> list[Path]:
    """The runs with records below a folder, sorted; the search does not descend into a run."""
    if RunDirectory(folder).metrics_file.is_file():
        return [folder]
    return [run for part in sorted(folder.iterdir()) if part.is_dir() for run in run_directories(part)]


def scores(run: Path) -> dict[int, float]:
    """Step → merit of each evaluation of a run so far; step 0 is omitted, where the policy is the reference."""
    found = {}
    for row in _rows(RunDirectory(run).metrics_file):
        value = merit_of_row(row)
        if value is not None and row["step"] > 0:
            found[int(row["step"])] = value
    return found


def falls_behind(config: SweepConfig, run: Path, others: Sequence[Path], after: int = 0) -> int | None:
    """The first step after `after` at whose evaluation a run should be stopped; None if it should continue.

    `median` (Golovin et al., Google Vizier, KDD 2017): its best score so far is below the median score of the ended
    runs at that step. `halving` (ASHA, arXiv 1810.05934): at steps w, wη, wη², … it is not among the best 1/η of the
    runs that have reached that step.

    Args:
        config: the pruner.
        run: the directory of the run.
        others: the directories of the sweep's other runs: finished, stopped or still training; failed ones are ignored.
        after: evaluations up to this step have been judged before.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=_pruner(config))
    for other in others:
        job, theirs = read_job(other), scores(other)
        if not theirs or (job is not None and job.failed):
            continue
        trial = study.ask()
        for step, score in sorted(theirs.items()):
            trial.report(score, step)
            trial.should_prune()  # the pruner records the rung that the trial reached
        if job is not None:
            study.tell(trial, list(theirs.values())[-1])
    trial = study.ask()
    for step, score in sorted(scores(run).items()):
        trial.report(score, step)
        if trial.should_prune() and step > after:
            return step
    return None


def _pruner(config: SweepConfig) -> "BasePruner":
    from optuna.pruners import MedianPruner, SuccessiveHalvingPruner

    if config.pruner is Pruner.median:
        return MedianPruner(n_startup_trials=config.min_runs, n_warmup_steps=config.warmup_steps)
    return SuccessiveHalvingPruner(min_resource=max(1, config.warmup_steps), reduction_factor=config.reduction)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    text = read_bytes(file, ROWS_LIMIT).decode(errors="replace") if file.is_file() else ""
    for line in text.split("\n")[:-1]:  # the last one may be half written
        with contextlib.suppress(ValueError):
            row = parse_json(line)
            if isinstance(row, dict) and is_step(row.get("step")):
                yield row
