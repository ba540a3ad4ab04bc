"""`alignrun -m`: Hydra's multirun, each run in a process and a directory of its own, and a table at the end."""

import json
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from math import isfinite, nan
from pathlib import Path
from typing import Any

import hydra
from accelerate.utils import patch_environment
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from alignrun import compose
from alignrun.build import check
from alignrun.errors import InputError, RunError, one_line
from alignrun.evaluation.ranking import rank
from alignrun.evaluation.results import Estimate, Point, RunResult, SweepResult
from alignrun.files import read_json, read_yaml
from alignrun.job import Job, read_job, write_job
from alignrun.pruning import Watch, check_pruning, merit, scores
from alignrun.reports.record import read
from alignrun.run_directory import RunDirectory, write_text_atomic

POLL = 1.0
"""Seconds between two looks at whether a run falls behind."""
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of a run that was told to stop; the negative ones where that fell before or after its training."""
COLUMNS = ("win_rate", "kl", "exploitability", "duality_gap", "accuracy", "log_loss", "loss")
"""The final metrics in the table, where there are any."""


def sweep(arguments: Sequence[str], console: Console) -> int:
    """Run every combination of the swept values; 0 if all of them finished, 1 otherwise.

    Raises:
        InputError: any combination is refused. Nothing is started then.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    flags = [argument for argument in arguments if argument.startswith("-")]
    parsed = parse(overrides)
    given = [override.value() for override in parsed if override.get_key_element() == "hydra.sweep.dir"]
    directory = Path(str(given[-1])) if given else _default_directory()
    if "$" in str(directory):
        raise InputError("config: hydra.sweep.dir must be a plain path, without interpolations")
    if any(override.get_key_element() == "run.dir" for override in parsed):
        raise InputError("config: run.dir is one directory and a sweep has many runs: set hydra.sweep.dir=DIR instead")
    check_launcher(parsed)
    configs = [compose.compose(combination) for combination in combinations(parsed)]
    for config in configs:
        check(config)
        check_pruning(config)
    command, confidence = shlex.join(["alignrun", *arguments]), configs[0].evaluation.confidence
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {directory}: {error.strerror}; choose another hydra.sweep.dir") from None
    if not given:
        overrides.append(f"hydra.sweep.dir={directory}")
    overrides += sweeper_settings(parsed)
    compose.register_schemas()
    entry = hydra.main(
        version_base=compose.VERSION_BASE, config_path=str(compose.config_folder()), config_name="config"
    )(run_job)
    previous, sys.argv = sys.argv, ["alignrun", *flags, *overrides]
    try:
        with raising_errors():
            entry()
    except KeyboardInterrupt:
        summarise(directory, command, confidence, console)
        return 130
    except HydraException as error:
        raise InputError(compose.explain(error)) from error
    except Exception as error:  # a launcher's or a sweeper's own: what has run is told all the same
        summarise(directory, command, confidence, console)
        raise RunError(
            f"hydra's launcher or sweeper failed after the runs above, {type(error).__name__}: {one_line(error)}: go "
            f"on with the same command and hydra.sweep.dir={directory}"
        ) from error
    finally:
        sys.argv = previous
    return summarise(directory, command, confidence, console)


def check_launcher(overrides: Sequence[Override]) -> None:
    """Refuse settings of Hydra's launcher and sweeper that it would not take.

    Raises:
        InputError: a plugin that is not installed, an unknown setting, or intervals that the sweeper does not know.
    """
    own = [override for override in overrides if override.get_key_element().startswith("hydra")]
    compose.compose_hydra([str(override.input_line) for override in own])
    intervals = [override for override in overrides if override.value_type is ValueType.INTERVAL_SWEEP]
    if intervals and not any(override.get_key_element() == "hydra/sweeper" for override in own):
        raise InputError(
            f"config: {intervals[0].input_line}: an interval is drawn from by hydra/sweeper=optuna: add that, or list "
            "the values"
        )


def sweeper_settings(overrides: Sequence[Override]) -> list[str]:
    """What Optuna's sweeper must know of this sweep, where the user has not said it.

    What a run returns is the better the larger it is, one that fails is no reason to end the others, and the same
    command makes the same runs, so that those which are finished need not be made again.
    """
    given = {override.get_key_element(): override.value() for override in overrides}
    if given.get("hydra/sweeper") != "optuna":
        return []
    usual = {"hydra.sweeper.direction": "maximize", "hydra.sweeper.max_failure_rate": "1.0"}
    if "hydra/sweeper/sampler" not in given:
        usual["hydra.sweeper.sampler.seed"] = "0"
    return [f"{key}={value}" for key, value in usual.items() if key not in given]


@contextmanager
def raising_errors() -> Iterator[None]:
    """Within the context Hydra raises what fails, where it would print it and exit."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # Optuna's, which tells of every plugin of its own
    with patch_environment(HYDRA_FULL_ERROR="1"):
        yield


def run_job(composed: DictConfig) -> float | None:
    """One run of the sweep, in a new process: no state is shared, and a crash ends this run alone.

    Returns:
        What is better the larger it is, for sweepers that optimise: the final win rate, or the accuracy where nothing
        judges, or else minus the loss; the last one of a run that was stopped since it fell behind; None where one
        failed.
    """
    settings = HydraConfig.get()
    sweep_directory = Path(settings.sweep.dir).absolute()
    directory, overrides = sweep_directory / str(settings.sweep.subdir), list(settings.overrides.task)
    directory.mkdir(parents=True, exist_ok=True)
    command, run = command_for(directory, overrides), RunDirectory(directory)
    if command:
        (directory / "job.json").unlink(missing_ok=True)
        # These sections only: a sweeper may have drawn other values that the run itself refuses.
        rule: Any = OmegaConf.to_object(composed.sweep)
        watch = Watch(rule, composed.train.steps, directory, sweep_directory)
        exit_code, pruned = run_to_its_end([sys.executable, "-m", "alignrun", *command], watch)
        directory.mkdir(parents=True, exist_ok=True)  # a run that could not start has removed its own
        if pruned is not None and run.summary_file.is_file():
            exit_code, pruned = 0, None  # it had come to its end before it was told
        write_job(directory, Job(exit_code, tuple(overrides), pruned))
        if exit_code in STOPPED and pruned is None:
            raise KeyboardInterrupt
    elif run.summary_file.is_file():
        write_job(directory, Job(0, tuple(overrides)))  # whatever stood there before it was finished
    job = read_job(directory)
    if job is None or job.failed:
        return None
    found = merit(_read_summary(directory))
    return next(reversed(scores(directory).values()), None) if found is None else found


def command_for(directory: Path, overrides: list[str]) -> list[str]:
    """What makes a run of the sweep, or goes on with what the same sweep has left of it; nothing where that is done."""
    run, job = RunDirectory(directory), read_job(directory)
    if run.config_file.is_file() and run.overrides_file.is_file() and _read_overrides(directory) == overrides:
        over = run.summary_file.is_file() or (job is not None and job.pruned is not None)
        return [] if over else ["resume", str(directory)]
    quoted = str(directory).replace("\\", "\\\\").replace("'", "\\'")
    return [*overrides, f"run.dir='{quoted}'"]


def run_to_its_end(command: Sequence[str], behind: Callable[[], int | None] = lambda: None) -> tuple[int, int | None]:
    """Run a command; a stop signal is the command's to act on (it saves and exits), and is waited for.

    Returns:
        The exit code, and where `behind` has had the run stopped, the step that it gave.
    """
    pruned: int | None = None
    process = subprocess.Popen(command)
    # Ctrl-C reaches the whole process group by itself; SIGTERM comes to this process alone.
    handlers: dict[int, Any] = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: lambda *_: process.terminate()}
    previous = {name: signal.signal(name, handler) for name, handler in handlers.items()}
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                exit_code = process.wait(timeout=POLL if pruned is None else None)
                return exit_code, pruned if exit_code in STOPPED else None
            pruned = behind()
            if pruned is not None:
                process.terminate()
    except BaseException:  # nobody would be left to look after it
        process.terminate()
        process.wait()
        raise
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides in Hydra's grammar.

    Raises:
        InputError: one cannot be read.
    """
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise InputError(compose.explain(error)) from error


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """Every combination that the basic sweeper would run: the first value of each override, each swept value once.

    A sweep's settings are checked one by one against the others' first values, which is enough to find an unknown
    key, a wrong type or a value out of range without composing the whole product.
    """
    choices: list[list[str]] = []
    for override in overrides:
        key = override.get_key_element()
        if key.startswith("hydra"):
            continue
        if override.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
            continue  # what these stand for is the sweeper's to know
        if override.is_sweep_override():
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    first = [options[0] for options in choices]
    rows = [first]
    for index, options in enumerate(choices):
        rows += [[*first[:index], option, *first[index + 1 :]] for option in options[1:]]
    return rows


def summarise(directory: Path, command: str, confidence: float, console: Console) -> int:
    """Print the settings of a sweep from best to worst, and keep them; 0 if all of its runs finished, 1 otherwise.

    sweep.json has a row for each run, ranking.json is what is printed, and report.html draws it.
    """
    rows: list[dict[str, Any]] = []
    runs: list[RunResult] = []
    for job in sorted(directory.rglob("job.json"), key=lambda path: (len(str(path)), str(path))):
        run = read_run(job.parent, str(job.parent.relative_to(directory)))
        measured = {} if run.exit_code else _read_summary(job.parent)
        pruned = {} if run.pruned is None else {"pruned": run.pruned}
        overrides = " ".join(_read_overrides(job.parent))
        rows.append({"run": run.name, "overrides": overrides, "exit_code": run.exit_code, **pruned, **measured})
        runs.append(run)
    write_text_atomic(directory / "sweep.json", json.dumps(rows, indent=2))
    result = rank(str(directory), runs, command, confidence)
    write_text_atomic(directory / "ranking.json", json.dumps(asdict(result), indent=2))
    print_ranking(result, console)
    try:
        from alignrun.reports.sweep import sweep_page

        write_text_atomic(directory / "report.html", sweep_page(result))
    except Exception as error:  # whatever it is, what the sweep has measured is worth more than its page
        console.print(Text(f"report.html could not be drawn: {one_line(error)}"))
    return int(any(run.exit_code and run.pruned is None for run in runs) or not runs)


def read_run(directory: Path, name: str) -> RunResult:
    """What a run of a sweep has left; a failed one has no final metrics, but its evaluations as far as it came."""
    record, overrides = read(RunDirectory(directory)), _read_overrides(directory)
    job = read_job(directory)
    assert job is not None
    summary = {} if job.exit_code else record.summary or {}
    seeds = [override.partition("=")[2] for override in overrides if _is_seed(override)]
    points = [
        Point(row.step, *(row.values.get(f"eval/{key}", nan) for key in ("kl", "win_rate"))) for row in record.rows
    ]
    return RunResult(
        name=name,
        setting=" ".join(override for override in overrides if not _is_seed(override)),
        seed=int(seeds[-1]) if seeds and seeds[-1].removeprefix("-").isdecimal() else None,
        exit_code=job.exit_code,
        summary={key: value for key, value in summary.items() if isfinite(value)},
        trajectory=tuple(point for point in points if isfinite(point.kl) and isfinite(point.win_rate)),
        pruned=job.pruned,
    )


def print_ranking(result: SweepResult, console: Console) -> None:
    """A row for each setting, the best first, with what distinguishes it from the others."""
    console.print(Text(f"{len(result.runs)} runs in {result.directory}, ranked by {result.ranked_by}", "bold"))
    words = [setting.setting.split(" ") for setting in result.settings]
    shared = [word for word in words[0] if all(word in others for others in words)] if len(words) > 1 else []
    if shared:
        console.print(Text(f"all with {' '.join(shared)}"))
    names = [name for name in COLUMNS if any(name in setting.metrics for setting in result.settings)]
    matched = [f"win rate at KL {result.matched_kl:.3g}"] if any(s.matched for s in result.settings) else []
    table = Table(Column("setting", overflow="fold"), "runs", *matched, *names)
    exit_codes = {run.name: run.exit_code for run in result.runs if run.pruned is None}
    for setting, own in zip(result.settings, words, strict=True):
        runs = ", ".join(setting.runs)
        if setting.failed:
            codes = sorted({exit_codes.get(name, 0) for name in setting.runs} - {0})
            runs += f"\n{setting.failed} failed (exit code {', '.join(map(str, codes))})"
        if setting.pruned:
            runs += f"\n{setting.pruned} stopped early"
        values = [setting.matched] * len(matched) + [setting.metrics.get(name) for name in names]
        cells = [" ".join(word for word in own if word not in shared), runs, *map(_shown, values)]
        table.add_row(*map(Text, cells))
    console.print(table)


def _shown(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    interval = f" [{estimate.low:.3g}, {estimate.high:.3g}]" if estimate.low < estimate.high else ""
    return f"{estimate.value:.4g}{interval}"


def _read_overrides(directory: Path) -> list[str]:
    """Those of the run, or those it was to have where it could not start."""
    file = RunDirectory(directory).overrides_file
    job = read_job(directory)
    stored: Any = read_yaml(file, "delete it") if file.is_file() else job.overrides if job else ()
    if not isinstance(stored, list | tuple):
        raise InputError(f"{file} cannot be read (it holds no list): delete it")
    return [override for override in map(str, stored) if not override.startswith("run.dir=")]


def _is_seed(override: str) -> bool:
    return override.lstrip("+").startswith("seed=")


def _read_summary(directory: Path) -> dict[str, Any]:
    file = RunDirectory(directory).summary_file
    found = read_json(file, "delete it") if file.is_file() else {}
    if not isinstance(found, dict):
        raise InputError(f"{file} cannot be read (it holds no mapping): delete it")
    return found


def _default_directory() -> Path:
    return Path("runs") / "sweeps" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
