"""Start or resume a run."""

import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
import yaml
from rich.console import Console

from alignrun import distributed
from alignrun.algorithms.base import discover
from alignrun.algorithms.best_response import BestResponseConfig
from alignrun.config import AdapterConfig, Config, Precision, RunConfig
from alignrun.config.paths import anchored
from alignrun.distributed.parts import whole
from alignrun.errors import InputError, RunError, one_line
from alignrun.launch import compose
from alignrun.launch.build import Assembly, assemble, memory_errors
from alignrun.launch.checks import check
from alignrun.launch.pins import check_pins, read_pins
from alignrun.models.device import resolve
from alignrun.models.precision import dtype_name
from alignrun.planning.automatic import choices, with_choices
from alignrun.preferences.base import preference_in_words
from alignrun.run.directory import RunDirectory, append_jsonl, environment, read_jsonl, write_text_atomic
from alignrun.run.fresh import fresh_directory
from alignrun.run.progress import Progress, summary_panel
from alignrun.run.state import write_failure
from alignrun.run.tracking import Tracking, finite, start_tracking
from alignrun.run.trust import check_own, read_signature, signature_text
from alignrun.security.files import is_step, read_json
from alignrun.security.text import counted
from alignrun.training.checkpoint import Checkpoint, examples_of, read_checkpoint, recorded_dtype
from alignrun.training.resumption import Resumption, commit, settle
from alignrun.training.trainer import Outcome, Progressed, Trainer


def train(config: Config, overrides: Sequence[str], console: Console) -> int:
    """Train a configuration from the first step to the last; returns the exit code. Raises as `train_in_folder`."""
    return train_in_folder(config, overrides, console)[1]


def train_in_folder(config: Config, overrides: Sequence[str], console: Console) -> tuple[Path, int]:
    """Train a configuration from the first step to the last; returns the folder of the run and the exit code.

    Raises:
        AlignrunError: bad input, or a run that cannot continue.
    """
    config = anchored(config)
    with job(config, console) as console, contextlib.ExitStack() as stack:
        made: RunDirectory | None = None
        with distributed.raise_together():
            check(config)
            if distributed.is_main():
                made = stack.enter_context(contextlib.closing(new_run(config)))
        path = distributed.broadcast(made.path if made else None)
        return path, _train(config, overrides, made or RunDirectory(path), console)


def new_run(config: Config) -> RunDirectory:
    """Create the folder of a new run: run.dir, or runs/DATE_TIME_ALGO_MODEL, with a number if that exists."""
    if config.run.dir is not None:
        return RunDirectory.create(config.run.dir)
    return RunDirectory.create(fresh_directory(Path("runs"), f"_{config.algo.name}_{config.model.name}"))


def _train(config: Config, overrides: Sequence[str], run: RunDirectory, console: Console) -> int:
    with distributed.raise_together():
        if distributed.is_main():
            write_text_atomic(run.environment_file, json.dumps(environment(), indent=2))
            write_text_atomic(run.overrides_file, overrides_text(overrides))
    try:
        assembly = _assemble(config, console, settled_dtype(config))
        config = _as_given(config, assembly)
    except BaseException:
        if distributed.is_main():
            remove_empty_run(run)
        raise
    with distributed.raise_together():
        if distributed.is_main():
            write_text_atomic(run.pins_file, assembly.pins.text())
            if signature := signature_of(config, console):
                write_text_atomic(run.signature_file, signature)
            write_text_atomic(run.config_file, compose.dump(config))
    return _fit(config, assembly, run, console)


def signature_of(config: Config, console: Console) -> str:
    """The text of signature.json, by which this user can open the run without --trust; empty without a key."""
    try:
        return signature_text(compose.plain(config))
    except InputError as error:
        console.print(f"the run is not signed, and --trust may be needed to resume it: {error}", style="dim")
        return ""


def overrides_text(overrides: Sequence[str]) -> str:
    """The text of overrides.yaml: the overrides as typed."""
    return str(yaml.safe_dump(list(overrides), allow_unicode=True))


@contextlib.contextmanager
def job(config: Config, console: Console) -> Iterator[Console]:
    """Join the processes of a launcher; yields a console on which only the main process prints.

    Raises:
        InputError: they cannot connect to each other.
    """
    with distributed.joined(resolve(config.model, config.adapter).device):
        yield console if distributed.is_main() else Console(quiet=True)


def exploit(path: str, overrides: Sequence[str], console: Console) -> int:
    """Train a best response to a finished run's policy, on its model, data and preference; returns the exit code.

    Its gain on held-out prompts is a lower bound on the exploitability of the run's policy.

    Raises:
        AlignrunError: bad input, or a run that cannot continue.
    """
    run = RunDirectory.open(path)
    config = compose.load(run.config_file)
    check_own(compose.plain(config), read_signature(run.signature_file), str(run.path), overrides=overrides)
    if not run.adapter.is_dir() and not any(override.startswith("algo.opponent=") for override in overrides):
        raise InputError(
            f"{run.path} has not finished: `alignrun resume {run.path}` first, or exploit its newest checkpoint: "
            f"`alignrun export {run.path}`, then `alignrun exploit {run.path} algo.opponent={run.path / 'export'}`"
        )
    both = {field.name for field in fields(config.algo)} & {field.name for field in fields(BestResponseConfig)}
    kept = {name: getattr(config.algo, name) for name in both - {"name", "opponent"}}
    config = replace(
        config,
        algo=BestResponseConfig(opponent=str(run.path), **kept),
        adapter=AdapterConfig(name=config.adapter.name),
        train=replace(config.train, max_kl=None),  # that limit is for the run, not for its best response
        tracker=replace(config.tracker, name=None),
        run=RunConfig(),
    )
    return train(compose.changed(config, overrides), overrides, console)


def resume(path: str, step: int | None, overrides: Sequence[str], console: Console) -> int:
    """Continue from the newest checkpoint of a run, or from that of `step`; returns the exit code.

    Records after `step` are discarded. Overrides change the configuration, for example to a lower learning rate or more
    steps. Nothing on disk changes until the first step has succeeded.

    Raises:
        AlignrunError: there is nothing to resume, the checkpoint is damaged, or an input of the run has changed.
    """
    run = RunDirectory.open(path)
    accepted, overrides = _accepted(overrides)
    with job(compose.load(run.config_file, overrides), console) as console, contextlib.closing(run):
        with distributed.raise_together():
            if distributed.is_main():
                run.lock()
                settle(run)
        stored = compose.load(run.config_file)
        with distributed.raise_together():
            if distributed.is_main():
                signature = read_signature(run.signature_file)
                check_own(compose.plain(stored), signature, str(run.path), overrides=overrides)
        stored = anchored(stored)
        config = anchored(compose.changed(stored, overrides))
        with distributed.raise_together():
            check(config)
        return _resume(config, stored, step, accepted, overrides, run, console)


def _finished_steps(run: RunDirectory) -> int:
    """Number of steps of a finished run; −1 otherwise. Raises InputError if summary.json is damaged."""
    if not run.summary_file.is_file():
        return -1
    advice = "delete it, and resume evaluates the run again"
    found = read_json(run.summary_file, advice)
    if not isinstance(found, dict) or not is_step(found.get("step")):
        raise InputError(f"{run.summary_file} does not say how many steps the run has: {advice}")
    return int(found["step"])


def _accepted(overrides: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether the user accepts changed inputs of the run, and the remaining overrides."""
    key = "resume.changed="
    answers = [override.removeprefix(key) for override in overrides if override.startswith(key)]
    if wrong := [answer for answer in answers if answer not in ("accept", "refuse")]:
        raise InputError(f"config: {key}{wrong[0]}: write accept or refuse")
    return answers[-1:] == ["accept"], [override for override in overrides if not override.startswith(key)]


def _resume(
    config: Config,
    stored: Config,
    step: int | None,
    accepted: bool,
    overrides: Sequence[str],
    run: RunDirectory,
    console: Console,
) -> int:
    done, whole = _finished_steps(run), config.train.epochs is not None and config != stored
    if step is None and done == config.train.steps and not whole:
        if config != stored:
            raise InputError(
                f"{run.path} has finished its {counted(done, 'step')}, and nothing is left to do with "
                f"{' '.join(overrides)}: raise train.steps, or continue from an earlier checkpoint with --step"
            )
        console.print(f"{run.path} has finished its {counted(done, 'step')}: nothing to resume.")
        return 0
    with distributed.raise_together():  # before loading a model, so that a damaged checkpoint is refused early
        checkpoint = read_checkpoint(run.checkpoints, step, lambda text: console.print(text, highlight=False))
        if checkpoint is not None and not whole:
            _check_ahead(config, checkpoint)
        for file in (run.metrics_file, run.samples_file):
            read_jsonl(file)
    at = (0, 0)
    if checkpoint is not None and config.train.epochs is not None:
        at = checkpoint.step, examples_of(checkpoint, stored.train.batch_size)
    kept = config if checkpoint is None else with_recorded(config, checkpoint, overrides)
    assembly = _assemble(kept, console, settled_dtype(config, checkpoint), *at)
    config = _as_given(config, assembly)
    with distributed.raise_together():
        if checkpoint is not None:
            _check_ahead(config, checkpoint)
        pins = check_pins(assembly.pins, run, accepted, checkpoint.step if checkpoint else 0)
        before = run.read_overrides() or []
    resumption = Resumption(
        step=0,
        evaluated=False,
        config=compose.dump(config),
        overrides=overrides_text([*before, *overrides]),
        pins=pins.text(),
        signature=signature_of(config, console) if distributed.is_main() else "",
        outputs=(run.adapter.name, *assembly.algorithm.exports()),
    )
    return _fit(config, replace(assembly, pins=pins), run, console, resumption, checkpoint, stored)


def _check_ahead(config: Config, checkpoint: Checkpoint) -> None:
    """Refuse to continue from a step that is after the last one. Raises InputError."""
    if checkpoint.step > config.train.steps:
        steps, epochs = config.train.steps, config.train.epochs
        ends = f"train.steps={steps} is" if epochs is None else f"train.epochs={epochs:g} ends at step {steps},"
        raise InputError(
            f"config: {ends} less than step {checkpoint.step}, from which the run would continue: raise it, or name an "
            "earlier checkpoint with --step"
        )


def settled_dtype(config: Config, checkpoint: Checkpoint | None = None) -> Precision:
    """The precision of the base: that of the configuration, for `auto` that of the checkpoint, or what is fast here.

    Processes of one run must agree on it, and so must a run and its resumption, whose processors may differ.

    Raises:
        InputError: the checkpoint names no precision that this version knows.
    """
    if config.model.dtype is not Precision.auto:
        return config.model.dtype
    with distributed.raise_together():
        dtype = recorded_dtype(checkpoint) if checkpoint else None
        dtype = dtype or Precision(dtype_name(resolve(config.model, config.adapter).dtype))
    settled: Precision = distributed.broadcast(dtype)
    return settled


def with_recorded(config: Config, checkpoint: Checkpoint, overrides: Sequence[str]) -> Config:
    """The configuration with what `auto` stood for in the steps of a checkpoint, except where `auto` is typed anew.

    Raises:
        InputError: the checkpoint records values that are not valid.
    """
    typed = {override.partition("=")[0] for override in overrides}
    found = checkpoint.state.get("chosen", {})
    with distributed.raise_together():
        try:
            return with_choices(config, {key: found[key] for key in found if key not in typed})
        except (InputError, TypeError) as error:
            raise InputError(
                f"{checkpoint.path}: its state does not say what `auto` stood for ({one_line(error, 120)}): resume "
                "from another with --step"
            ) from None


def _assemble(config: Config, console: Console, dtype: Precision, step: int = 0, examples: int = 0) -> Assembly:
    """The parts of the run, with a base of this dtype."""
    settled = replace(config, model=replace(config.model, dtype=dtype))
    with distributed.raise_together(), memory_errors(config):
        return assemble(settled, lambda text: console.print(text, style="dim", markup=False), step, examples)


def _as_given(config: Config, assembly: Assembly) -> Config:
    """The configuration that is stored: its steps follow from the data, and what was `auto` stays `auto`."""
    return replace(config, train=replace(config.train, steps=assembly.config.train.steps))


def remove_empty_run(run: RunDirectory) -> None:
    """Delete the folder of a run that could not be assembled."""
    for file in (run.environment_file, run.overrides_file, run.path / ".lock"):
        file.unlink(missing_ok=True)
    run.close()
    if not any(run.path.iterdir()):
        run.path.rmdir()


def _fit(
    config: Config,
    assembly: Assembly,
    run: RunDirectory,
    console: Console,
    resumption: Resumption | None = None,
    checkpoint: Checkpoint | None = None,
    stored: Config | None = None,
) -> int:
    """Train to the end, and report.

    Args:
        config: the configuration as it is stored; that of the assembly has values for `auto`.
        assembly: the parts of the run.
        run: its folder.
        console: where progress is shown.
        resumption: committed when a resumed run has made its first step; its checkpoint is filled in here.
        checkpoint: where a resumed run continues; None if it has not reached one.
        stored: the configuration before it was resumed.
    """
    torch.use_deterministic_algorithms(assembly.trained.device.type == "cpu")
    chosen = choices(config, assembly.config)
    trainer = Trainer(
        assembly.config, assembly.trained, assembly.algorithm, assembly.data, assembly.evaluate, run, chosen
    )
    start = Progressed(0, evaluated=False)
    with distributed.raise_together():
        if checkpoint is not None and stored is not None:
            start = trainer.restore(checkpoint, stored.train.batch_size)
    if start.step == config.train.steps and config != stored:
        start = replace(start, evaluated=False)  # repeat an evaluation made with other settings
    check_alike(assembly, start.step)
    with Progress(config.train.steps, start=start.step, console=console) as progress:
        if resumption:
            progress.note(f"resuming {run.path} after step {start.step}")

        def begin() -> Tracking:
            if not distributed.is_main():
                return Tracking(None, None, 0, progress.note)
            known = read_pins(run) if resumption else None
            if resumption:
                commit(run, replace(resumption, step=start.step, evaluated=start.evaluated))
            tracking = start_tracking(
                config.tracker,
                run,
                compose.plain(config),
                resume_step=start.step if resumption else None,
                resume_evaluated=start.evaluated,
                notify=progress.note,
            )
            if known and (changed := assembly.pins.changed[len(known.changed) :]):
                append_jsonl(run.metrics_file, {"step": start.step, "changed": changed})
            return tracking

        try:
            with memory_errors(assembly.config):
                outcome = trainer.fit(start, begin, progress, resumed=resumption is not None)
        except BaseException as error:
            if trainer.tracking is not None:
                trainer.tracking.finish({}, 1)
                if distributed.is_main() and isinstance(error, Exception):
                    write_failure(run, error)
                    write_report(run, console)
            raise
    tracking = trainer.tracking
    assert tracking is not None
    if outcome.evaluation is None:
        tracking.finish({}, 1)
        return _interrupted(outcome, run, console)
    if not distributed.is_main():
        return 0
    changed = {"changed": assembly.pins.changed} if assembly.pins.changed else {}
    summary = {"step": outcome.step, **changed, **finite(outcome.evaluation.metrics)}
    write_text_atomic(run.summary_file, json.dumps(summary, indent=2))
    location = tracking.location
    tracking.finish(outcome.evaluation.metrics, 0)
    reported = write_report(run, console)
    summary_panel(
        f"{config.algo.name} on {config.model.name}: {counted(outcome.step, 'step')}",
        [
            *outcome.evaluation.lines,
            ("settings", settings_in_words(config, dtype_name(assembly.trained.backbone.dtype))),
            ("run", str(run.path)),
            ("metrics", "metrics.jsonl"),
            *([("completions", "samples.jsonl")] if outcome.evaluation.samples else []),
            *[("figure", name) for name in outcome.evaluation.files],
            ("adapter", "adapter/"),
            *[(name, f"{name}/") for name in assembly.algorithm.exports()],
            *([("report", run.report_file.name)] if reported else []),
            *([("wandb", location)] if location else []),
        ],
        console,
    )
    return 0


def settings_in_words(config: Config, dtype: str) -> str:
    """The settings that a result depends on most, in one line; config.yaml has all of them."""
    parts = [f"seed {config.seed}", f"batches of {config.train.batch_size}"]
    parts += [f"learning rate {config.optim.learning_rate:g}", dtype]
    if discover()[config.algo.name].online:
        generation = config.generation
        parts.append(f"up to {generation.max_new_tokens} tokens at temperature {generation.temperature:g}")
        parts.append(f"judged by {preference_in_words(config.preference)}")
    return ", ".join(parts)


def check_alike(assembly: Assembly, step: int) -> None:
    """Refuse to train with processes that start from different states. Raises RunError."""
    if distributed.size() == 1:
        return
    trained, algorithm = assembly.trained, assembly.algorithm
    own = [*trained.trainable().values(), *algorithm.trainable().values(), *algorithm.state().values()]
    sums = [float(whole(tensor).detach().sum(dtype=torch.float64)) for tensor in own]
    with distributed.raise_together():
        if not distributed.all_equal((step, len(assembly.data), trained.backbone.fingerprint, *sums)):
            raise RunError(
                "the processes of this job do not start from the same weights and data: give all of them the same "
                "files, and a shared run.dir"
            )


def write_report(run: RunDirectory, console: Console) -> bool:
    """Write report.html; if that fails, print a line, since it is no reason for the run to fail."""
    from alignrun.reports.run import run_page  # imports matplotlib, which is slow

    try:
        write_text_atomic(run.report_file, run_page(run))
    except Exception as error:
        console.print(f"{run.report_file} could not be written: {one_line(error)}", markup=False, soft_wrap=True)
        return False
    return True


def _interrupted(outcome: Outcome, run: RunDirectory, console: Console) -> int:
    name = signal.Signals(outcome.stopped_by).name if outcome.stopped_by else ""
    if distributed.is_main():
        write_report(run, console)
    console.print(f"stopped by {name} after step {outcome.step}: continue with `alignrun resume {run.path}`")
    return 128 + int(outcome.stopped_by or 0)
