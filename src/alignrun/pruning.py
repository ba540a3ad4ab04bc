"""Runs of a sweep that fall behind the others are stopped, by Optuna's rules, on what all have recorded.

The rules read the runs' own metrics.jsonl and nothing else: they hold for any launcher whose runs share a file system,
and for any sweeper.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignrun.config import Config, Pruner, SweepConfig
from alignrun.errors import InputError
from alignrun.job import read_job
from alignrun.run_directory import RunDirectory

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

SCORES = ("eval/win_rate", "eval/accuracy")
"""What an evaluation is judged by: the first that there is, the larger the better."""


def check_pruning(config: Config) -> None:
    """Refuse a rule that cannot be applied.

    Raises:
        InputError: Optuna is not here, or nothing is evaluated before a run ends.
    """
    rule = config.sweep.pruner
    if rule is Pruner.none:
        return
    if find_spec("optuna") is None:
        raise InputError(f"config: sweep.pruner={rule.value} needs optuna: pip install 'alignrun[sweep]'")
    if not 0 < config.evaluation.every < config.train.steps:
        raise InputError(
            f"config: sweep.pruner={rule.value} judges runs by evaluations on their way: set evaluation.every below "
            f"train.steps={config.train.steps}"
        )


def scores(run: Path) -> dict[int, float]:
    """The evaluations of a run so far, by step."""
    found = {}
    for row in _rows(RunDirectory(run).metrics_file):
        values = [float(row[name]) for name in SCORES if isinstance(row.get(name), float)]
        if values:
            found[int(row["step"])] = values[0]
    return found


def falls_behind(config: SweepConfig, run: Path, others: Sequence[Path]) -> int | None:
    """The step of its last evaluation, where a run should not go on from there; else None.

    `median` (Golovin et al., Google Vizier, KDD 2017): its best score so far is below the median of what the runs that
    are over had at that step. `halving` (ASHA, arXiv 1810.05934): at steps w, wη, wη², … it is not among the best 1/η
    of the runs that came so far.

    Args:
        config: the rule.
        run: its directory.
        others: those of the other runs of the sweep, finished, stopped or still going on; failed ones do not count.
    """
    import optuna

    mine = scores(run)
    if not mine:
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=_pruner(config))
    for other in others:
        job, theirs = read_job(other), scores(other)
        if not theirs or (job is not None and job.failed):
            continue
        trial = study.ask()
        for step, score in sorted(theirs.items()):
            trial.report(score, step)
            trial.should_prune()  # which has the rule note how far it came
        if job is not None:
            study.tell(trial, list(theirs.values())[-1])
    trial = study.ask()
    behind = False
    for step, score in sorted(mine.items()):
        trial.report(score, step)
        behind = trial.should_prune()
    return max(mine) if behind else None


def _pruner(config: SweepConfig) -> "BasePruner":
    from optuna.pruners import MedianPruner, SuccessiveHalvingPruner

    if config.pruner is Pruner.median:
        return MedianPruner(n_startup_trials=config.min_runs, n_warmup_steps=config.warmup_steps)
    return SuccessiveHalvingPruner(min_resource=max(1, config.warmup_steps), reduction_factor=config.reduction)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for line in text.split("\n")[:-1]:  # the last one may be half written
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row
