"""`alignrun -m`: Hydra's multirun, with a process and a directory for each run, and a table at the end."""

import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from alignrun.config import Config
from alignrun.config.shipped import config_folder
from alignrun.errors import InputError, RunError, one_line
from alignrun.launch import compose
from alignrun.launch.explaining import explain
from alignrun.launch.overrides import quoted, with_new_key
from alignrun.launch.own_config import GROUP
from alignrun.launch.own_files import PASSED_ON, named, passed_on
from alignrun.run.directory import RunDirectory
from alignrun.run.fresh import fresh_directory
from alignrun.run.merit import merit
from alignrun.security.terminal import say
from alignrun.sweeps.definition import join
from alignrun.sweeps.job import JOB, Job, settle_in, state, write_job
from alignrun.sweeps.pruning import Watch, check_pruning, scores
from alignrun.sweeps.table import final_metrics, summarise

POLL = 1.0
"""Seconds between two checks whether a run falls behind."""
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of a run stopped by a signal; negative ones if the signal came before or after its training."""
SWEPT = "ALIGNRUN_SWEPT"
"""The environment variable that passes the swept keys to the runs, with any launcher."""


def sweep(arguments: Sequence[str], console: Console) -> int:
    """Run every combination of the swept values; 0 if all of them finished, 1 otherwise.

    Raises:
        InputError: any combination is refused; nothing has been started then.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    directory, overrides = split_directory([argument for argument in arguments if argument not in flags])
    overrides = [with_new_key(override, Config) for override in overrides]
    parsed = parse(overrides)
    if any(override.get_key_element() == "run.dir" for override in parsed):
        raise InputError("config: run.dir is one directory and a sweep has many runs: set hydra.sweep.dir=DIR instead")
    check_launcher(parsed)
    configs = [compose.compose(compose.with_recipe(combination)) for combination in combinations(parsed)]
    from alignrun.launch.checks import check  # needs torch; mistakes in the overrides are reported before

    for config in configs:
        check(config)
        check_pruning(config)
    command, confidence = shlex.join(["alignrun", *arguments]), configs[0].evaluation.confidence
    if directory is None:
        directory = fresh_directory(Path("runs") / "sweeps", key="hydra.sweep.dir")
    with holding(directory):
        join(directory, parsed, named().digests())
        overrides += compose.own_entries(Config, overrides)
        overrides += [f"hydra.sweep.dir={quoted(directory.absolute())}", *sweeper_settings(parsed)]
        swept = [override.get_key_element() for override in parsed if override.is_sweep_override()]
        with variables(**{SWEPT: ",".join(swept), PASSED_ON: "\n".join(named().arguments())}):
            return launch(directory, [*flags, *overrides], command, confidence, console)


def launch(directory: Path, arguments: Sequence[str], command: str, confidence: float, console: Console) -> int:
    """Let Hydra launch the runs, and report how they ended. Raises as `sweep`, and RunError if a plugin fails."""
    compose.register_schemas()
    entry = hydra.main(version_base=compose.VERSION_BASE, config_path=str(config_folder()), config_name="config")(
        run_job
    )
    previous, sys.argv = sys.argv, ["alignrun", *arguments]
    try:
        with raising_errors():
            entry()
    except KeyboardInterrupt:
        summarise(directory, command, confidence, console)
        return 130
    except HydraException as error:
        raise InputError(explain(error)) from error
    except Exception as error:  # any error of a launcher or sweeper: the ended runs are still reported
        summarise(directory, command, confidence, console)
        raise RunError(
            f"hydra's launcher or sweeper failed after the runs above, {type(error).__name__}: {one_line(error)}: "
            f"continue with the same command and {shlex.quote(f'hydra.sweep.dir={directory}')}"
        ) from error
    finally:
        sys.argv = previous
    return summarise(directory, command, confidence, console)


def split_directory(overrides: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The sweep's directory, if given, and the other overrides. `~` is expanded, `=` needs no quotes.

    Raises:
        InputError: it is not the path of a single directory.
    """
    key = "hydra.sweep.dir"
    given = [override for override in overrides if override.lstrip("+").startswith(f"{key}=")]
    others = [override for override in overrides if override not in given]
    if not given:
        return None, others
    text = given[-1].partition("=")[2]
    try:
        (override,) = parse([f"{key}={text}"])
    except InputError:
        if set(text) & set("'\""):
            raise
        value: Any = text  # Hydra's grammar requires quotes around some characters of paths
    else:
        if override.is_sweep_override():
            raise InputError(f"config: {key}={text} must be one directory: quote a path that contains commas")
        value = override.value()
    if "$" in str(value) or not str(value or ""):
        raise InputError(f"config: {key} must be a plain path, without interpolations")
    return Path(str(value)).expanduser(), others


@contextmanager
def holding(directory: Path) -> Iterator[None]:
    """Context in which the directory exists and no other process runs a sweep in it.

    Raises:
        InputError: it cannot be created, is a run, or another process uses it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {directory}: {error.strerror}; choose another hydra.sweep.dir") from None
    held = RunDirectory(directory)
    if held.config_file.exists():
        raise InputError(f"{directory} is a run, not a sweep: choose another hydra.sweep.dir")
    try:
        held.lock()
    except InputError as error:
        raise InputError(str(error).replace("run.dir", "hydra.sweep.dir")) from error
    with closing(held):
        yield


def check_launcher(overrides: Sequence[Override]) -> None:
    """Refuse settings that Hydra's launcher or sweeper would reject.

    Raises:
        InputError: a plugin is not installed, a setting is unknown, or the sweeper does not support intervals.
    """
    own = [override for override in overrides if override.get_key_element().startswith("hydra")]
    compose.compose_hydra([str(override.input_line) for override in own])
    intervals = [override for override in overrides if override.value_type is ValueType.INTERVAL_SWEEP]
    if intervals and not any(override.get_key_element() == "hydra/sweeper" for override in own):
        raise InputError(
            f"config: {intervals[0].input_line}: only hydra/sweeper=optuna samples from an interval: add that, or list "
            "the values"
        )


def sweeper_settings(overrides: Sequence[Override]) -> list[str]:
    """Defaults for Optuna's sweeper: maximise, tolerate failed runs, fix the seed.

    The fixed seed makes the same command sample the same runs, so that finished ones need not be repeated.
    """
    given = {override.get_key_element(): override.value() for override in overrides}
    if given.get("hydra/sweeper") != "optuna":
        return []
    usual = {"hydra.sweeper.direction": "maximize", "hydra.sweeper.max_failure_rate": "1.0"}
    if "hydra/sweeper/sampler" not in given:
        usual["hydra.sweeper.sampler.seed"] = "0"
    return [f"{key}={value}" for key, value in usual.items() if key not in given]


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Within the context, the environment has these variables."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def raising_errors() -> Iterator[None]:
    """Within the context, Hydra raises its errors instead of printing them and exiting."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # used by Optuna; it logs every plugin
    with variables(HYDRA_FULL_ERROR="1"):
        yield


def run_job(composed: DictConfig) -> float | None:
    """Run one job of the sweep in a new process: no state is shared, and a crash ends only this run.

    Returns:
        The merit that sweepers maximise: the final win rate, or the accuracy without a preference, or else minus the
        loss; for a pruned run, its last one; None for a failed run.
    """
    settings = HydraConfig.get()
    sweep_directory = Path(settings.sweep.dir).absolute()
    overrides = [override for override in settings.overrides.task if not override.startswith(f"+{GROUP}")]
    directory = settle_in(sweep_directory, str(settings.sweep.subdir), overrides)
    command, run = command_for(directory, overrides), RunDirectory(directory)
    if command and busy(run):
        say(f"{directory} is being written by another process: skipped here")
        return None
    if command:
        (directory / JOB).unlink(missing_ok=True)
        # Only these sections: a sweeper may have sampled other values that the run itself refuses.
        rule: Any = OmegaConf.to_object(composed.sweep)
        watch = Watch(rule, planned_steps(composed, overrides), directory, sweep_directory)
        with variables(**wandb_names(sweep_directory, directory, overrides)):
            exit_code, pruned = run_to_its_end([sys.executable, "-m", "alignrun", *command], watch)
        directory.mkdir(parents=True, exist_ok=True)  # a run that could not start has removed it
        if pruned is not None and run.summary_file.is_file():
            exit_code, pruned = 0, None  # it had finished before the signal arrived
        write_job(directory, Job(exit_code, tuple(overrides), pruned))
        if exit_code in STOPPED and pruned is None:
            raise KeyboardInterrupt
    elif run.summary_file.is_file():
        write_job(directory, Job(0, tuple(overrides)))  # replaces an entry from before it finished
    job = state(directory)
    if job is None or job.failed:
        return None
    found = merit(final_metrics(directory))
    return next(reversed(scores(directory).values()), None) if found is None else found


def planned_steps(composed: DictConfig, overrides: Sequence[str]) -> int:
    """The steps of a run, or 0 where only its own configuration says them: with epochs, or a recipe that it adds."""
    return 0 if composed.train.get("epochs") or compose.recipe_of(overrides) else int(composed.train.steps)


def wandb_names(sweep_directory: Path, directory: Path, overrides: Sequence[str]) -> dict[str, str]:
    """wandb's environment variables for a run of the sweep, unless the user has set them: the group is the sweep, and
    the name consists of the swept values."""
    swept = os.environ.get(SWEPT, "").split(",")
    setting = " ".join(override for override in overrides if override.partition("=")[0] in swept)
    names = {"WANDB_RUN_GROUP": sweep_directory.name, "WANDB_NAME": setting[:128] or directory.name}
    return {variable: name for variable, name in names.items() if not os.environ.get(variable)}


def command_for(directory: Path, overrides: list[str]) -> list[str]:
    """The command that starts or resumes a run of the sweep; empty if the run is finished."""
    run, job = RunDirectory(directory), state(directory)
    if run.config_file.is_file():
        return [] if job is not None and not job.failed else ["resume", str(directory)]
    return [*passed_on(), *overrides, f"run.dir={quoted(directory)}"]


def busy(run: RunDirectory) -> bool:
    """Whether another process is writing the run."""
    try:
        with closing(run):
            run.lock()
    except InputError:
        return True
    return False


def run_to_its_end(command: Sequence[str], behind: Callable[[], int | None] = lambda: None) -> tuple[int, int | None]:
    """Run a command to its end; on a stop signal, wait for the command to save and exit.

    Returns:
        The exit code, and the step that `behind` returned if it stopped the run.
    """
    pruned: int | None = None
    process = subprocess.Popen(command)
    # Ctrl-C reaches the whole process group; SIGTERM only this process.
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
    except BaseException:  # do not leave an orphan behind
        process.terminate()
        process.wait()
        raise
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides in Hydra's grammar.

    Raises:
        InputError: one cannot be parsed.
    """
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise InputError(explain(error)) from error


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """Combinations that cover each swept value once: the first value of every key, and each other value with them.

    This suffices to find an unknown key, a wrong type or a value out of range without composing the whole product.
    """
    choices: list[list[str]] = []
    for override in overrides:
        key = override.get_key_element()
        if key.startswith("hydra"):
            continue
        if override.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
            continue  # only the sweeper can expand these
        if override.is_sweep_override():
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    first = [options[0] for options in choices]
    rows = [first]
    for index, options in enumerate(choices):
        rows += [[*first[:index], option, *first[index + 1 :]] for option in options[1:]]
    return rows
