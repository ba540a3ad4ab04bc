"""The one training loop: collect, accumulate, clip, step, log, evaluate, save."""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignrun import distributed
from alignrun.algorithms.base import Algorithm, Trained
from alignrun.algorithms.common.batches import as_json
from alignrun.config import Config
from alignrun.data.dataset import Dataset
from alignrun.distributed.parts import any_sharded, to_main
from alignrun.errors import InputError, RunError, one_line
from alignrun.models.device import batch_to
from alignrun.models.precision import dtype_name
from alignrun.run.directory import RunDirectory, discard_output, write_text_atomic, writing
from alignrun.run.progress import Progress
from alignrun.run.tracking import Tracking
from alignrun.training.accumulate import Accumulator
from alignrun.training.checkpoint import (
    Checkpoint,
    TensorGroups,
    check_group_finite,
    restore_weights,
    save_checkpoint,
)
from alignrun.training.optim import flatten_optimizer, make_optimizer, restore_optimizer, set_learning_rate
from alignrun.training.signals import stop_requested
from alignrun.training.snapshot import undone
from alignrun.types import Evaluation, Evaluator

MEASURES = ("kl", "win_rate", "accuracy", "loss")
"""Metrics of an evaluation that are finite unless the weights are broken."""


class LeftOut(Exception):
    """An update was skipped because its loss or gradient is not finite."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a run has come."""

    step: int
    evaluated: bool
    """Whether an evaluation of this step is recorded."""
    examples: int = 0
    """Number of examples the steps have consumed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    step: int
    evaluation: Evaluation | None
    """None if the run was interrupted."""
    stopped_by: signal.Signals | None


class Trainer:
    """The training loop of every algorithm.

    Several processes run the same loop on the same batches, each with all the trained weights, or with a part of each;
    gradients are summed over them, and only the main process writes files.

    Args:
        config: the configuration, with nothing left `auto` that a plan chooses.
        trained: the policy, or the feedback model.
        algorithm: collects batches and computes their losses.
        data: the training rows.
        evaluate: measures the result.
        run: the folder of the run.
        chosen: key → what the plan chose, recorded in every checkpoint.
    """

    def __init__(
        self,
        config: Config,
        trained: Trained,
        algorithm: Algorithm,
        data: Dataset[Any],
        evaluate: Evaluator,
        run: RunDirectory,
        chosen: Mapping[str, Any],
    ) -> None:
        self._config, self._trained, self._algorithm = config, trained, algorithm
        self._data, self._evaluate = data, evaluate
        self._run, self._chosen = run, chosen
        self._weights, self._algorithm_weights = trained.trainable(), algorithm.trainable()
        self._trainable = {**self._weights, **self._algorithm_weights}
        self._sharded = any_sharded(self._trainable.values())
        self._optimizer = make_optimizer(config.optim, self._trainable.values())
        self._skipped = 0
        self.tracking: Tracking | None = None
        """None until the run starts to write."""

    def restore(self, saved: Checkpoint, batch_size: int) -> Progressed:
        """Restore weights and optimiser state from a checkpoint; returns where to continue.

        Args:
            saved: the checkpoint.
            batch_size: that of its steps, used if it does not record how many examples they consumed.

        Raises:
            InputError: the checkpoint belongs to another configuration.
        """
        restore_weights(self._weights, saved)
        restore_weights(self._algorithm_state(), saved, "algorithm")
        check_group_finite(saved, "optimizer")
        configured = [{key: group[key] for key in group if key != "params"} for group in self._optimizer.param_groups]
        state, names = saved.state, list(self._trainable)
        try:
            restore_optimizer(self._optimizer, names, saved.tensors["optimizer"], state["optimizer"])
            self._skipped = int(state.get("skipped", 0))
            examples = int(state.get("examples", saved.step * batch_size))
            evaluated = bool(state["evaluated"])
            self._algorithm.measured.update(
                {name: float(state["measured"][name]) for name in state.get("measured", {})}
            )
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise InputError(
                f"{saved.path}: its state is not what this version writes ({type(error).__name__}: "
                f"{one_line(error, 120)}): resume from another checkpoint with --step"
            ) from None
        for group, settings in zip(self._optimizer.param_groups, configured, strict=True):
            group.update(settings)  # resuming may change the configuration, which takes precedence
        return Progressed(saved.step, evaluated, examples)

    def fit(
        self, start: Progressed, begin: Callable[[], Tracking], progress: Progress, *, resumed: bool = False
    ) -> Outcome:
        """Train from `start` to the last step, and evaluate.

        Args:
            start: how far the run has come.
            begin: opens the tracking of the run. A resumed run changes nothing on disk until its first step has
                succeeded (or, with no step left, its last evaluation): it is called only then.
            progress: the console.
            resumed: whether an existing run must stay unchanged until then.

        Raises:
            RunError: too many losses or gradients are not finite, the preference fails, or files cannot be written.
        """
        self._begin, self._progress = begin, progress
        self._algorithm.report(progress.note)
        self._accumulate = Accumulator(
            self._algorithm,
            list(self._trainable.values()),
            self._trained.device,
            self._config.train.micro,
            self._config.optim.max_grad_norm,
            progress.note,
        )
        self._pending_evaluation: tuple[int, Evaluation] | None = None
        self._recorded = start.step if start.evaluated else None
        self._saved = (start.step, start.evaluated) if resumed else None
        train = self._config.train
        self._shift = start.examples - start.step * train.batch_size
        if not resumed:
            self._open()
        if not start.evaluated and self._due(start.step) and start.step < train.steps:
            self._record(start.step, self._measure(start.step))
        with stop_requested() as stopped_by, self._half_steps():
            for done in range(start.step + 1, train.steps + 1):
                self._log(done, self.train_step(done - 1))
                if done == train.steps:
                    break
                number = distributed.largest(stopped_by() or 0)  # all processes stop if one got the signal
                signalled = signal.Signals(number) if number else None
                if self._due(done) and not signalled:
                    self._record(done, self._measure(done))
                if signalled or (train.checkpoint_every and done % train.checkpoint_every == 0):
                    self._save(done)  # stop without an evaluation; the resumed run does it
                if signalled:
                    return Outcome(done, None, signalled)
            self._save(train.steps)
            evaluation = self._measure(train.steps)
            if self._recorded != train.steps:
                self._record(train.steps, evaluation)
            self._open()
            self._save(train.steps)
            self._write_adapter()
        return Outcome(train.steps, evaluation, None)

    def train_step(self, step: int) -> dict[str, float]:
        """Run the updates of one batch of the data; returns the means of their metrics."""
        self._step, self._tokens, started = step, 0.0, time.perf_counter()
        asked = self._algorithm.asked
        rate = set_learning_rate(self._optimizer, self._config.optim, step, self._config.train.steps)
        updates: list[dict[str, float]] = []
        with self._saving_after_errors(updates), distributed.report_lost(), suppress(LeftOut):
            self._given = self._batch_at(step)
            for batch in self._algorithm.collect(self._given, step):
                updates.append(self._update(batch))
        seconds = time.perf_counter() - started
        progress = {"learning_rate": rate, "epoch": self._examples(step + 1) / len(self._data)}
        skipped = {"skipped_steps": self._skipped} if self._skipped else {}
        speed = {"seconds": seconds, "tokens_per_second": self._tokens / seconds}
        asked = self._algorithm.asked - asked
        questions = {"questions": asked} if asked else {}
        return means(updates) | self._algorithm.drain() | skipped | questions | progress | speed

    def _batch_at(self, step: int) -> Any:
        batch = self._data.batch_at(step, self._config.train.batch_size, self._shift)
        return batch_to(batch, self._trained.device) if self._algorithm.online else batch

    def _update(self, batch: Any) -> dict[str, float]:
        """Take one optimiser step; returns its metrics. Raises LeftOut if loss or gradient is not finite."""
        names, measured = self._accumulate(batch)
        *sums, norm, total = measured.tolist()  # the only wait for the device in a step, besides sampling
        metrics = {name: value / total for name, value in zip(names, sums, strict=True)}
        metrics["grad_norm"] = norm
        if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
            self._leave_out(metrics)
            raise LeftOut
        self._algorithm.check_update(metrics)
        self._optimizer.step()
        self._tokens += metrics.pop("tokens") * total
        return metrics

    @contextmanager
    def _half_steps(self) -> Iterator[None]:
        """Give the algorithm half-steps while the loop runs; a permanent reference would be a cycle."""
        if not self._algorithm.half_steps:
            yield
            return
        self._algorithm.half_step = self._half_step
        try:
            yield
        finally:
            del self._algorithm.half_step

    @contextmanager
    def _half_step(self, batch: Any) -> Iterator[None]:
        """Within the context the policy has taken a step on this batch."""
        with undone(self._trainable, self._optimizer):
            self._update(batch)
            yield

    def _leave_out(self, metrics: dict[str, float]) -> None:
        """Save the batch of a skipped update. Raises RunError after too many of them."""
        path = self._run.path / "failed_batch.json"
        record = {"step": self._step + 1, "loss": str(metrics["loss"]), "grad_norm": str(metrics["grad_norm"])}
        with distributed.raise_together():
            if distributed.is_main():
                write_text_atomic(path, json.dumps(record | {"batch": as_json(self._given)}, ensure_ascii=False))
        limit = self._config.train.max_skipped_steps
        problem = f"step {self._step + 1}: the loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']}"
        if self._skipped < limit:
            self._skipped += 1
            self._progress.note(f"{problem}: skipped, {self._skipped} of at most {limit}; the batch is in {path}")
            return
        before = f", after {limit} skipped" if limit else ""
        with distributed.raise_together():
            raise RunError(
                f"{problem}{before}: that update was not made, the run is saved and the batch is in {path}: continue "
                f"with a lower learning rate, `alignrun resume {self._run.path} optim.learning_rate=…`, or "
                "model.dtype=float32"
            )

    @contextmanager
    def _saving_after_errors(self, updates: Sequence[dict[str, float]]) -> Iterator[None]:
        """Save when a step fails before its first update: the state is still that of the previous step."""
        measured = dict(self._algorithm.measured)
        try:
            yield
        except RunError as error:
            if not updates:
                self._algorithm.measured.update(measured)  # this step, repeated, chooses as it has chosen
                self._save(self._step, alone=not error.raised_together)
            raise

    def _open(self) -> None:
        """Start tracking, and record the evaluation that waited for it."""
        if self.tracking is None:
            with distributed.raise_together():
                self.tracking = self._begin()
            if self._pending_evaluation is not None:
                self._record(*self._pending_evaluation)

    def _log(self, done: int, metrics: dict[str, float]) -> None:
        self._open()
        assert self.tracking is not None
        if done % self._config.train.log_every == 0 or done == self._config.train.steps:
            with distributed.raise_together():
                self.tracking.log(done, metrics)
        self._progress.update(done, metrics)
        self._check_drift(done, metrics)

    def _check_drift(self, done: int, metrics: dict[str, float]) -> None:
        limit = self._config.train.max_kl
        if limit is not None and metrics.get("kl", 0.0) > limit:
            self._save(done)
            self._write_adapter()
            with distributed.raise_together():
                raise RunError(
                    f"step {done}: KL(policy ‖ reference) is {metrics['kl']:.3g} nats, above train.max_kl={limit:g}: "
                    f"the state is saved; continue with `alignrun resume {self._run.path} train.max_kl=…`, or from "
                    "an earlier step with a lower optim.learning_rate or a larger algo.kl_tau"
                )

    def _due(self, step: int) -> bool:
        every = self._config.evaluation.every
        return every > 0 and step % every == 0

    def _measure(self, step: int) -> Evaluation:
        """Evaluate; if that fails, save the steps before it."""
        try:
            evaluation = self._evaluate()
            broken = [name for name in MEASURES if not math.isfinite(evaluation.metrics.get(name, 0.0))]
            if broken:
                with distributed.raise_together():
                    raise RunError(
                        f"step {step}: {' and '.join(broken)} of the evaluation {'is' if len(broken) == 1 else 'are'} "
                        "not finite, as when weights diverge: the state is saved; continue from an earlier step with "
                        f"`alignrun resume {self._run.path} --step N` and a lower optim.learning_rate"
                    )
            return evaluation
        except Exception as error:
            self._save(step, alone=not getattr(error, "raised_together", False))
            raise

    def _record(self, step: int, evaluation: Evaluation) -> None:
        if self.tracking is None:
            self._pending_evaluation = step, evaluation
            return
        with distributed.raise_together():
            self.tracking.log(step, {f"eval/{name}": value for name, value in evaluation.metrics.items()})
            self.tracking.log_samples(step, evaluation.samples)
            self.tracking.log_adapter(step, evaluation.metrics, self._trained.save_adapter)
            for name, text in evaluation.files.items() if distributed.is_main() else ():
                write_text_atomic(self._run.path / name, text)
        self._recorded = step
        self._progress.note(f"step {step}: " + ", ".join(f"{what} {value}" for what, value in evaluation.lines))

    def _examples(self, step: int) -> int:
        """Examples consumed so far; `_shift` corrects for steps before a resume with another batch size."""
        return step * self._config.train.batch_size + self._shift

    def _save(self, step: int, *, alone: bool = False) -> None:
        """Write a checkpoint unless it exists already.

        `alone`: the other processes are elsewhere in the code and cannot raise together. They cannot give their parts
        of sharded weights either, and the last checkpoint stays the newest.
        """
        progressed = Progressed(step, self._recorded == step, self._examples(step))
        if self._saved == (step, progressed.evaluated) or (alone and self._sharded):
            return
        groups, state = self._state()
        if self._sharded:
            groups = {name: to_main(group) for name, group in groups.items()}
        with nullcontext() if alone else distributed.raise_together():
            if distributed.is_main():
                self._write_checkpoint(progressed, groups, state)
        self._saved = step, progressed.evaluated

    def _state(self) -> tuple[TensorGroups, dict[str, Any]]:
        """The tensors of a checkpoint, and the optimiser's settings."""
        optimizer, state = flatten_optimizer(self._optimizer, list(self._trainable))
        groups: dict[str, Mapping[str, torch.Tensor]] = {"weights": self._weights, "optimizer": optimizer}
        if algorithm := self._algorithm_state():
            groups["algorithm"] = algorithm
        return groups, state

    def _write_checkpoint(self, progressed: Progressed, groups: TensorGroups, optimizer: dict[str, Any]) -> None:
        if self._saved is not None and self._saved[0] != progressed.step:
            with writing(self._run.adapter):  # they belong to another step than the newest checkpoint
                for name in self._outputs():
                    discard_output(self._run.path / name)
        save_checkpoint(
            self._run.checkpoints,
            progressed.step,
            groups,
            {
                "optimizer": optimizer,
                "evaluated": progressed.evaluated,
                "examples": progressed.examples,
                "skipped": self._skipped,
                "dtype": dtype_name(self._trained.backbone.dtype),
                "chosen": self._chosen,
                "measured": self._algorithm.measured,
            },
            self._config.train.keep_checkpoints,
        )

    def _write_adapter(self) -> None:
        for name, save in self._outputs().items():
            with distributed.raise_together(), writing(self._run.adapter):
                partial, main = self._run.path / f"{name}.writing", distributed.is_main()
                if main:
                    shutil.rmtree(partial, ignore_errors=True)
                if main or self._sharded:  # all give their parts
                    save(partial)
                if main:
                    discard_output(self._run.path / name)
                    partial.rename(self._run.path / name)

    def _outputs(self) -> dict[str, Callable[[Path], None]]:
        """Folder name → function that writes the weights of the newest checkpoint for other programs."""
        return {self._run.adapter.name: self._trained.save_adapter, **self._algorithm.exports()}

    def _algorithm_state(self) -> dict[str, torch.Tensor]:
        return {**self._algorithm_weights, **self._algorithm.state()}


def means(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every metric over the updates of a step."""
    names = updates[-1] if updates else {}
    return {name: math.fsum(update[name] for update in updates) / len(updates) for name in names}
