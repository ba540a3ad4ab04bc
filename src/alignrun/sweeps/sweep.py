"""`alignrun -m`: Hydra's multirun, each run in a process and a directory of its own, and a table at the end."""

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

from alignrun.errors import InputError, RunError, one_line
from alignrun.launch import compose
from alignrun.launch.overrides import quoted
from alignrun.run.directory import RunDirectory
from alignrun.run.fresh import fresh_directory
from alignrun.run.merit import merit
from alignrun.security.terminal import say
from alignrun.sweeps.definition import join
from alignrun.sweeps.job import JOB, Job, settle_in, state, write_job
from alignrun.sweeps.pruning import Watch, check_pruning, scores
from alignrun.sweeps.table import read_summary, summarise

POLL = 1.0
"""Seconds between two looks at whether a run falls behind."""
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of a run that was told to stop; the negative ones where that fell before or after its training."""
SWEPT = "ALIGNRUN_SWEPT"
"""The variable by which the runs of a sweep learn which keys differ between them, whatever launches them."""


def sweep(arguments: Sequence[str], console: Console) -> int:
    """Run every combination of the swept values; 0 if all of them finished, 1 otherwise.

    Raises:
        InputError: any combination is refused. Nothing is started then.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    directory, overrides = split_directory([argument for argument in arguments if argument not in flags])
    parsed = parse(overrides)
    if any(override.get_key_element() == "run.dir" for override in parsed):
        raise InputError("config: run.dir is one directory and a sweep has many runs: set hydra.sweep.dir=DIR instead")
    check_launcher(parsed)
    configs = [compose.compose(combination) for combination in combinations(parsed)]
    from alignrun.launch.checks import check  # needs torch, and a mistake in the overrides is reported before

    for config in configs:
        check(config)
        check_pruning(config)
    command, confidence = shlex.join(["alignrun", *arguments]), configs[0].evaluation.confidence
    if directory is None:
        directory = fresh_directory(Path("runs") / "sweeps", key="hydra.sweep.dir")
    with holding(directory):
        join(directory, parsed)
        overrides += [f"hydra.sweep.dir={quoted(directory.absolute())}", *sweeper_settings(parsed)]
        swept = [override.get_key_element() for override in parsed if override.is_sweep_override()]
        with variables(**{SWEPT: ",".join(swept)}):
            return launch(directory, [*flags, *overrides], command, confidence, console)


def launch(directory: Path, arguments: Sequence[str], command: str, confidence: float, console: Console) -> int:
    """Have Hydra make the runs, and say how they ended. Raises as `sweep`, and RunError where a plugin fails."""
    compose.register_schemas()
    entry = hydra.main(
        version_base=compose.VERSION_BASE, config_path=str(compose.config_folder()), config_name="config"
    )(run_job)
    previous, sys.argv = sys.argv, ["alignrun", *arguments]
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
            f"on with the same command and {shlex.quote(f'hydra.sweep.dir={directory}')}"
        ) from error
    finally:
        sys.argv = previous
    return summarise(directory, command, confidence, console)


def split_directory(overrides: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Where the sweep is to be, if that is given, and the other overrides. `~` is expanded, `=` needs no quotes.

    Raises:
        InputError: it is no path of one directory.
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
        value: Any = text  # Hydra's grammar wants quotes around some characters that paths have
    else:
        if override.is_sweep_override():
            raise InputError(f"config: {key}={text} must be one directory: put a path with commas into quotes")
        value = override.value()
    if "$" in str(value) or not str(value or ""):
        raise InputError(f"config: {key} must be a plain path, without interpolations")
    return Path(str(value)).expanduser(), others


@contextmanager
def holding(directory: Path) -> Iterator[None]:
    """Within the context the directory is there, and no other process makes a sweep in it.

    Raises:
        InputError: it cannot be made, is a run, or another process has it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {directory}: {error.strerror}; choose another hydra.sweep.dir") from None
    held = RunDirectory(directory)
    if held.config_file.exists():
        raise InputError(f"{directory} is a run and no sweep: choose another hydra.sweep.dir")
    try:
        held.lock()
    except InputError as error:
        raise InputError(str(error).replace("run.dir", "hydra.sweep.dir")) from error
    with closing(held):
        yield


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
def variables(**values: str) -> Iterator[None]:
    """Within the context the environment has these variables."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def raising_errors() -> Iterator[None]:
    """Within the context Hydra raises what fails, where it would print it and exit."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # Optuna's, which tells of every plugin of its own
    with variables(HYDRA_FULL_ERROR="1"):
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
    overrides = list(settings.overrides.task)
    directory = settle_in(sweep_directory, str(settings.sweep.subdir), overrides)
    command, run = command_for(directory, overrides), RunDirectory(directory)
    if command and busy(run):
        say(f"{directory} is being written by another process, and left to it")
        return None
    if command:
        (directory / JOB).unlink(missing_ok=True)
        # These sections only: a sweeper may have drawn other values that the run itself refuses.
        rule: Any = OmegaConf.to_object(composed.sweep)
        watch = Watch(rule, composed.train.steps, directory, sweep_directory)
        with variables(**wandb_names(sweep_directory, directory, overrides)):
            exit_code, pruned = run_to_its_end([sys.executable, "-m", "alignrun", *command], watch)
        directory.mkdir(parents=True, exist_ok=True)  # a run that could not start has removed its own
        if pruned is not None and run.summary_file.is_file():
            exit_code, pruned = 0, None  # it had come to its end before it was told
        write_job(directory, Job(exit_code, tuple(overrides), pruned))
        if exit_code in STOPPED and pruned is None:
            raise KeyboardInterrupt
    elif run.summary_file.is_file():
        write_job(directory, Job(0, tuple(overrides)))  # whatever stood there before it was finished
    job = state(directory)
    if job is None or job.failed:
        return None
    found = merit(read_summary(directory))
    return next(reversed(scores(directory).values()), None) if found is None else found


def wandb_names(sweep_directory: Path, directory: Path, overrides: Sequence[str]) -> dict[str, str]:
    """What wandb is to call a run of the sweep, as its own variables, where the user has not set them: the group is the
    sweep, the name the values that differ between its runs."""
    swept = os.environ.get(SWEPT, "").split(",")
    setting = " ".join(override for override in overrides if override.partition("=")[0] in swept)
    names = {"WANDB_RUN_GROUP": sweep_directory.name, "WANDB_NAME": setting[:128] or directory.name}
    return {variable: name for variable, name in names.items() if not os.environ.get(variable)}


def command_for(directory: Path, overrides: list[str]) -> list[str]:
    """What makes a run of the sweep, or goes on with what is there of it; nothing where that is done."""
    run, job = RunDirectory(directory), state(directory)
    if run.config_file.is_file():
        return [] if job is not None and not job.failed else ["resume", str(directory)]
    return [*overrides, f"run.dir={quoted(directory)}"]


def busy(run: RunDirectory) -> bool:
    """Whether another process is writing the run."""
    try:
        with closing(run):
            run.lock()
    except InputError:
        return True
    return False


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
