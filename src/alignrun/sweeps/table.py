"""The results of a sweep: the table at its end, and the files that store it."""

import json
from dataclasses import asdict, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from alignrun.errors import InputError, one_line
from alignrun.evaluation.ranking import ONE_EVALUATION, rank_settings
from alignrun.evaluation.results import Estimate, Point, RunResult, SettingResult, SweepResult
from alignrun.launch.own_config import adds_own
from alignrun.reports.fitted import Column, fitted
from alignrun.reports.record import read
from alignrun.reports.settings import common_to_all, own
from alignrun.run.directory import RunDirectory, write_text_atomic
from alignrun.security.files import read_json
from alignrun.security.text import counted
from alignrun.sweeps.job import Job, keyed, members, recorded, started_with, state

COLUMNS = ("win_rate", "kl", "exploitability", "duality_gap", "accuracy", "log_loss", "loss")
"""The final metrics in the table, if present."""


def summarise(directory: Path, command: str, confidence: float, console: Console) -> int:
    """Print and save the settings of a sweep from best to worst; 0 if all of its runs finished, 1 otherwise.

    sweep.json has a row for each run, ranking.json holds the printed table, and report.html shows it.
    """
    rows: list[dict[str, Any]] = []
    runs: list[RunResult] = []
    unfinished: list[str] = []
    for member in members(directory):
        name, job = str(member.relative_to(directory)), state(member)
        row: dict[str, Any] = {"run": name, "overrides": " ".join(setting_of(member)), "exit_code": None}
        if job is None:
            unfinished.append(name)
        else:
            run = read_run(member, name, job)
            pruned = {} if job.pruned is None else {"pruned": job.pruned}
            row |= {"exit_code": job.exit_code, **pruned, **({} if job.exit_code else final_metrics(member))}
            runs.append(run)
        rows.append(row)
    write_text_atomic(directory / "sweep.json", json.dumps(rows, indent=2))
    result = rank_settings(str(directory), runs, command, confidence)
    if unfinished:
        note = f"Not finished, and excluded: {', '.join(unfinished)}."
        result = replace(result, notes=(note, *result.notes))
    write_text_atomic(directory / "ranking.json", json.dumps(asdict(result), indent=2))
    print_ranking(result, console)
    try:
        from alignrun.reports.sweep import sweep_page

        write_text_atomic(directory / "report.html", sweep_page(result))
    except Exception as error:  # a failed page must not lose the sweep's results
        console.print(Text(f"report.html could not be drawn: {one_line(error)}"))
    return int(any(run.exit_code and run.pruned is None for run in runs) or bool(unfinished) or not runs)


def setting_of(member: Path) -> list[str]:
    """The overrides of a run: those it was started with, and changes made on resuming."""
    known, changed = started_with(member) or [], recorded(member) or []
    values = keyed(known)
    later = {key: value for key, value in keyed(changed).items() if values.get(key) != value}
    kept = [override for override in known if override.partition("=")[0].lstrip("+") not in later]
    return kept + [f"{key}={value}" if value else key for key, value in later.items()]


def read_run(directory: Path, name: str, job: Job) -> RunResult:
    """The results of a run of a sweep; a failed one has no final metrics, only its evaluations so far."""
    record, overrides = read(RunDirectory(directory)), setting_of(directory)
    summary = {} if job.exit_code else record.summary or {}
    seeds = [override.partition("=")[2] for override in overrides if _is_seed(override)]
    points = [
        Point(row.step, *(row.values.get(f"eval/{key}", nan) for key in ("kl", "win_rate"))) for row in record.rows
    ]
    setting = tuple(override.lstrip("+") for override in overrides if not _is_seed(override) and not adds_own(override))
    return RunResult(
        name=name,
        setting=" ".join(setting),
        overrides=setting,
        seed=int(seeds[-1]) if seeds and seeds[-1].removeprefix("-").isdecimal() else None,
        exit_code=job.exit_code,
        summary={key: value for key, value in summary.items() if isfinite(value)},
        trajectory=tuple(point for point in points if isfinite(point.kl) and isfinite(point.win_rate)),
        pruned=job.pruned,
    )


def print_ranking(result: SweepResult, console: Console) -> None:
    """Print a row per setting, the best first, with the overrides that distinguish it."""
    console.print(
        Text(f"{counted(len(result.runs), 'run')} in {result.directory}, ranked by {result.ranked_by}", "bold")
    )
    common = common_to_all(result.settings)
    if common:
        console.print(Text(f"all with {' '.join(common)}"))
    names = [name for name in COLUMNS if any(name in setting.metrics for setting in result.settings)]
    exit_codes = {run.name: run.exit_code for run in result.runs if run.pruned is None}
    columns = [Column("runs", [_runs(setting, exit_codes) for setting in result.settings])]
    if any(setting.matched for setting in result.settings):
        columns.append(Column(f"win rate at KL {result.matched_kl:.3g}", [*map(_matched, result.settings)]))
    columns += [Column(name, [_shown(setting.metrics.get(name)) for setting in result.settings]) for name in names]
    settings = [own("", setting.overrides, common) for setting in result.settings]
    for table in fitted("", settings, columns, console.width, "setting"):
        console.print(table)
    if len(result.settings) > 1 and not result.settled:
        console.print(Text("The intervals over seeds do not show that the first is the best."), soft_wrap=True)
    for note in result.notes:
        console.print(Text(note), soft_wrap=True)


def _runs(setting: SettingResult, exit_codes: dict[str, int]) -> str:
    """The runs of a setting, and how many of them have not finished."""
    runs = ", ".join(setting.runs)
    if setting.failed:
        codes = sorted({exit_codes.get(name, 0) for name in setting.runs} - {0})
        runs += f"\n{setting.failed} failed (exit code {', '.join(map(str, codes))})"
    if setting.pruned:
        runs += f"\n{setting.pruned} stopped early"
    return runs


def _matched(setting: SettingResult) -> str:
    return _shown(setting.matched) + (f" {ONE_EVALUATION}" if setting.single else "")


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    interval = f" [{estimate.low:.3g}, {estimate.high:.3g}]" if estimate.low < estimate.high else ""
    return f"{estimate.value:.4g}{interval}"


def _is_seed(override: str) -> bool:
    return override.lstrip("+").startswith("seed=")


def final_metrics(directory: Path) -> dict[str, Any]:
    """The final metrics of a run; empty if it has none."""
    file = RunDirectory(directory).summary_file
    found = read_json(file, "delete it") if file.is_file() else {}
    if not isinstance(found, dict):
        raise InputError(f"{file} cannot be read (it is not a mapping): delete it")
    return found
