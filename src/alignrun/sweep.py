"""`alignrun -m`: Hydra's multirun, each run in a process and a directory of its own, and a table at the end."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from alignrun import compose
from alignrun.build import check
from alignrun.errors import InputError
from alignrun.run_directory import RunDirectory, write_text_atomic

COLUMNS = (
    "win_rate",
    "win_rate_low",
    "win_rate_high",
    "kl",
    "exploitability",
    "duality_gap",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "log_loss",
    "loss",
)


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
    for combination in combinations(parsed):
        check(compose.compose(combination))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {directory}: {error.strerror}; choose another hydra.sweep.dir") from None
    if not given:
        overrides.append(f"hydra.sweep.dir={directory}")
    compose.register_schemas()
    entry = hydra.main(
        version_base=compose.VERSION_BASE, config_path=str(compose.config_folder()), config_name="config"
    )(run_job)
    previous, sys.argv = sys.argv, ["alignrun", *flags, *overrides]
    try:
        entry()
    except KeyboardInterrupt:
        summarise(directory, console)
        return 130
    finally:
        sys.argv = previous
    return summarise(directory, console)


def run_job(_config: DictConfig) -> float:
    """One run of the sweep, in a new process: no state is shared, and a crash ends this run alone.

    Returns:
        What is better the larger it is, for sweepers that optimise: the final win rate, or the accuracy where nothing
        judges; not a number where the run failed.
    """
    settings = HydraConfig.get()
    directory = Path(settings.sweep.dir).absolute() / str(settings.sweep.subdir)
    directory.mkdir(parents=True, exist_ok=True)
    quoted = str(directory).replace("\\", "\\\\").replace("'", "\\'")
    overrides = [*settings.overrides.task, f"run.dir='{quoted}'"]
    exit_code = run_to_its_end([sys.executable, "-m", "alignrun", *overrides])
    directory.mkdir(parents=True, exist_ok=True)  # a run that could not start has removed its own
    write_text_atomic(directory / "job.json", json.dumps({"exit_code": exit_code}))
    if exit_code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise KeyboardInterrupt
    outcome = _read_summary(directory)
    return float(outcome.get("win_rate", outcome.get("accuracy", float("nan"))))


def run_to_its_end(command: Sequence[str]) -> int:
    """Run a command; a stop signal is the command's to act on (it saves and exits), and is waited for."""
    process = subprocess.Popen(command)
    # Ctrl-C reaches the whole process group by itself; SIGTERM comes to this process alone.
    handlers: dict[int, Any] = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: lambda *_: process.terminate()}
    previous = {name: signal.signal(name, handler) for name, handler in handlers.items()}
    try:
        return process.wait()
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


def summarise(directory: Path, console: Console) -> int:
    """Print one line for each run below `directory` and write sweep.json beside them."""
    rows: list[dict[str, Any]] = []
    for job in sorted(directory.rglob("job.json"), key=lambda path: (len(str(path)), str(path))):
        overrides_file = job.parent / "overrides.yaml"
        stored: Any = OmegaConf.load(overrides_file) if overrides_file.is_file() else []
        swept = [override for override in map(str, stored) if not override.startswith("run.dir=")]
        ended = json.loads(job.read_text())
        measured = {} if ended["exit_code"] else _read_summary(job.parent)
        rows.append({"run": str(job.parent.relative_to(directory)), "overrides": " ".join(swept), **ended, **measured})
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    table = Table(title=f"{len(rows)} runs in {directory}", title_justify="left")
    for name in ("run", "overrides", *columns):
        table.add_column(name)
    for row in rows:
        failed = f"failed (exit code {row['exit_code']})" if row["exit_code"] else ""
        values = [f"{row[name]:.4f}" if name in row else failed for name in columns] or [failed]
        table.add_row(row["run"], row["overrides"], *values)
    console.print(table, highlight=False)
    write_text_atomic(directory / "sweep.json", json.dumps(rows, indent=2))
    return int(any(row["exit_code"] for row in rows) or not rows)


def _read_summary(directory: Path) -> dict[str, Any]:
    file = RunDirectory(directory).summary_file
    summary: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return summary


def _default_directory() -> Path:
    return Path("runs") / "sweeps" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
