"""Starting a run, resuming one, exporting what it learned."""

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console

from alignrun import compose, processes
from alignrun.algorithms.best_response import BestResponseConfig
from alignrun.build import Assembly, assemble, check, load_trained, memory_errors
from alignrun.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, load_newest
from alignrun.config import AdapterConfig, AdapterKind, Config, RunConfig
from alignrun.errors import InputError, RunError, one_line
from alignrun.models.device import resolve_device
from alignrun.models.policy import Policy
from alignrun.models.scorer import Scorer
from alignrun.models.sources import load_tokenizer
from alignrun.preferences.base import preference_using
from alignrun.progress import Progress, summary_panel
from alignrun.run_directory import RunDirectory, environment, write_text_atomic, writing
from alignrun.tracking import Tracking, start_tracking
from alignrun.trainer import Outcome, Progressed, Trainer, restore_weights


def train(config: Config, overrides: Sequence[str], console: Console) -> int:
    """Run a configuration from its first step to its last; the exit code.

    Raises:
        AlignrunError: bad input, or a run that could not go on.
    """
    with job(config, console) as console, contextlib.ExitStack() as held:
        run = RunDirectory(processes.told(config.run.dir or default_directory(config)))
        with processes.agreed():
            check(config)
            if processes.is_main():
                run = held.enter_context(contextlib.closing(RunDirectory.create(run.path)))
        return _train(config, overrides, run, console)


def _train(config: Config, overrides: Sequence[str], run: RunDirectory, console: Console) -> int:
    with processes.agreed():
        if processes.is_main():
            write_text_atomic(run.environment_file, json.dumps(environment(), indent=2))
            write_text_atomic(run.overrides_file, OmegaConf.to_yaml(OmegaConf.create(list(overrides))))
    try:
        assembly = _assemble(config, console)
    except BaseException:
        if processes.is_main():
            remove_empty_run(run)
        raise
    with processes.agreed():
        if processes.is_main():
            write_text_atomic(run.config_file, compose.dump(config))
    return _fit(config, assembly, run, console)


@contextlib.contextmanager
def job(config: Config, console: Console) -> Iterator[Console]:
    """All processes of a launcher together, of which one speaks: what is told to the console.

    Raises:
        InputError: they do not find each other.
    """
    with processes.joined(resolve_device(config.model.device)):
        yield console if processes.is_main() else Console(quiet=True)


def exploit(path: str, overrides: Sequence[str], console: Console) -> int:
    """Train a best response to the policy of a finished run, on that run's model, data and preference; the exit code.

    What it gains on held-out prompts is a lower bound on how exploitable the run's policy is.

    Raises:
        AlignrunError: bad input, or a run that could not go on.
    """
    run = RunDirectory.open(path)
    config = compose.load(run.config_file)
    if not run.adapter.is_dir():
        raise InputError(f"{run.path} has not finished: go on with `alignrun resume {run.path}` first")
    kept = {
        field.name: getattr(config.algo, field.name)
        for field in fields(BestResponseConfig)
        if field.name not in ("name", "opponent") and hasattr(config.algo, field.name)
    }
    config = replace(
        config,
        algo=BestResponseConfig(opponent=str(run.path), **kept),
        adapter=AdapterConfig(name=config.adapter.name),
        tracker=replace(config.tracker, name=None),
        run=RunConfig(),
    )
    return train(compose.changed(config, overrides), overrides, console)


def resume(path: str, step: int | None, overrides: Sequence[str], console: Console) -> int:
    """Go on from the newest checkpoint of a run, or from that of `step`; the exit code.

    What lies after `step` is given up. With overrides the run goes on under the changed configuration, for example
    with a lower learning rate or more steps.

    Raises:
        AlignrunError: there is nothing to resume, or the checkpoint is damaged.
    """
    run = RunDirectory.open(path)
    config = compose.load(run.config_file, overrides)
    with job(config, console) as console, contextlib.closing(run):
        with processes.agreed():
            check(config)
            if processes.is_main():
                run.lock()
        return _resume(config, step, overrides, run, console)


def _resume(config: Config, step: int | None, overrides: Sequence[str], run: RunDirectory, console: Console) -> int:
    finished = run.summary_file.is_file() and json.loads(run.summary_file.read_text())["step"] >= config.train.steps
    if step is None and finished:
        console.print(f"{run.path} has finished its {config.train.steps} steps: nothing to resume.")
        return 0
    with processes.agreed():  # before a model is loaded, so that a damaged one is told at once
        checkpoint = _read_checkpoint(run, step, console)
    assembly = _assemble(config, console)
    with processes.agreed():
        if overrides and processes.is_main():
            write_text_atomic(run.config_file, compose.dump(config))
            before: Any = OmegaConf.load(run.overrides_file) if run.overrides_file.is_file() else []
            write_text_atomic(run.overrides_file, OmegaConf.to_yaml(OmegaConf.create([*before, *overrides])))
    return _fit(config, assembly, run, console, resumed=True, checkpoint=checkpoint)


def export(path: str, step: int | None, merge: bool, target: str | None, console: Console) -> int:
    """Write what a run has learned: a policy as a PEFT adapter or merged into its base, for transformers and vLLM, or
    a feedback model as an adapter and a head.

    Raises:
        AlignrunError: the run has no checkpoint, or the target is taken.
    """
    run = RunDirectory.open(path)
    config = compose.load(run.config_file)
    folder = Path(target).expanduser() if target else run.path / ("merged" if merge else "export")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is taken: choose another folder with --to")
    checkpoint = _read_checkpoint(run, step, console)
    if checkpoint is None:
        raise InputError(f"{run.path} has no checkpoint yet: let the run reach one first")
    adapter = config.adapter
    if adapter.name is AdapterKind.qlora:
        # The adapter is the same on the full-precision base, which is what it is merged into; no GPU is needed.
        adapter = replace(adapter, name=AdapterKind.lora)
    trained = load_trained(replace(config, adapter=adapter), load_tokenizer(config.model))
    if merge and not isinstance(trained, Policy):
        raise InputError(f"{run.path} is a feedback model, whose head no merged model has: export it without --merge")
    restore_weights(trained.trainable(), checkpoint)
    with writing(folder):
        if merge and isinstance(trained, Policy):
            trained.save_merged(folder)
        else:
            trained.save_adapter(folder)
    whole = merge or config.adapter.name is AdapterKind.none
    if isinstance(trained, Scorer):
        use = preference_using(trained.card.kind)
        console.print(f"feedback model of step {checkpoint.step} written to {folder}", highlight=False)
        console.print(f"use it with preference={use} preference.path={folder}", highlight=False)
        return 0
    console.print(
        f"{'model' if whole else 'adapter'} of step {checkpoint.step} written to {folder}\n"
        + (
            f"load it with AutoModelForCausalLM.from_pretrained({str(folder)!r})"
            if whole
            else f"load it with PeftModel.from_pretrained(base, {str(folder)!r})"
        ),
        highlight=False,
    )
    return 0


def _assemble(config: Config, console: Console) -> Assembly:
    with processes.agreed(), memory_errors(config):
        return assemble(config, lambda text: console.print(f"[dim]{text}[/]"))


def _read_checkpoint(run: RunDirectory, step: int | None, console: Console) -> Checkpoint | None:
    """The checkpoint of `step`, or the newest that is whole; None where there is none yet."""
    found = dict(list_checkpoints(run.checkpoints))
    if step is not None and step not in found:
        raise InputError(f"{run.path} has no checkpoint of step {step}: choose from {sorted(found) or 'none'}")
    if step is not None:
        return load_checkpoint(found[step])
    return load_newest(run.checkpoints, lambda text: console.print(text, highlight=False, markup=False))


def default_directory(config: Config) -> Path:
    """runs/DATE_TIME_ALGO_MODEL, numbered where that is taken."""
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{config.algo.name}_{config.model.name}"
    candidates = (Path("runs") / (stem if number == 1 else f"{stem}_{number}") for number in range(1, 1000))
    return next(path for path in candidates if not path.exists())


def remove_empty_run(run: RunDirectory) -> None:
    """Leave nothing behind of a run that could not be assembled."""
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
    *,
    resumed: bool = False,
    checkpoint: Checkpoint | None = None,
) -> int:
    torch.use_deterministic_algorithms(assembly.trained.device.type == "cpu")
    trainer = Trainer(config, assembly.trained, assembly.algorithm, assembly.data, assembly.evaluate, run)
    with processes.agreed():
        start = trainer.restore(checkpoint) if checkpoint is not None else Progressed(0, evaluated=False)
    check_alike(assembly, start.step)
    if processes.is_main():
        run.summary_file.unlink(missing_ok=True)
        for later, folder in list_checkpoints(run.checkpoints):
            if later > start.step:
                shutil.rmtree(folder)
    with Progress(config.train.steps, start=start.step, console=console) as progress:
        if resumed:
            progress.note(f"resuming {run.path} after step {start.step}")
        with processes.agreed():
            tracking = (
                start_tracking(
                    config.tracker,
                    run,
                    compose.plain(config),
                    resume_step=start.step if resumed else None,
                    resume_evaluated=start.evaluated,
                    notify=progress.note,
                )
                if processes.is_main()
                else Tracking(None, None, 0, progress.note)
            )
        try:
            with memory_errors(config):
                outcome = trainer.fit(start, tracking, progress)
        except BaseException:
            tracking.finish({}, 1)
            raise
    if outcome.evaluation is None:
        tracking.finish({}, 1)
        return _interrupted(outcome, run, console)
    if not processes.is_main():
        return 0
    write_text_atomic(run.summary_file, json.dumps({"step": outcome.step, **outcome.evaluation.metrics}, indent=2))
    location = tracking.location
    tracking.finish(outcome.evaluation.metrics, 0)
    reported = write_report(run, console)
    summary_panel(
        f"{config.algo.name} on {config.model.name}: {outcome.step} steps",
        [
            *outcome.evaluation.lines,
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


def check_alike(assembly: Assembly, step: int) -> None:
    """Refuse processes that are to train together and do not start alike. Raises RunError."""
    if processes.size() == 1:
        return
    trained, algorithm = assembly.trained, assembly.algorithm
    own = [*trained.trainable().values(), *algorithm.trainable().values(), *algorithm.state().values()]
    sums = [float(tensor.detach().double().sum()) for tensor in own]
    with processes.agreed():
        if not processes.alike((step, len(assembly.data), trained.backbone.fingerprint, *sums)):
            raise RunError(
                "the processes of this job do not start from the same weights and data: give all of them the same "
                "files, and a run.dir that they share"
            )


def write_report(run: RunDirectory, console: Console) -> bool:
    """Write report.html; a page that cannot be drawn is told in a line, and no reason for a run to fail."""
    from alignrun.reports.run import run_page  # draws, and what draws is slow to import

    try:
        write_text_atomic(run.report_file, run_page(run))
    except Exception as error:
        console.print(f"{run.report_file} could not be written: {one_line(error)}", markup=False, soft_wrap=True)
        return False
    return True


def _interrupted(outcome: Outcome, run: RunDirectory, console: Console) -> int:
    name = signal.Signals(outcome.stopped_by).name if outcome.stopped_by else ""
    if processes.is_main():
        write_report(run, console)
    console.print(f"stopped by {name} after step {outcome.step}: go on with `alignrun resume {run.path}`")
    return 128 + int(outcome.stopped_by or 0)
