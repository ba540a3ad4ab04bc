"""The one training loop: collect, accumulate, clip, step, log, evaluate, save."""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from alignrun import distributed
from alignrun.algorithms.base import Algorithm, Dataset, Trained
from alignrun.algorithms.common.batches import Trial, count, rows
from alignrun.config import Config
from alignrun.data.trimming import trim
from alignrun.errors import InputError, RunError, one_line
from alignrun.models.device import batch_to, release_memory
from alignrun.run.directory import RunDirectory, discard_output, write_text_atomic, writing
from alignrun.run.progress import Progress
from alignrun.run.tracking import Tracking
from alignrun.training.checkpoint import Checkpoint, save_checkpoint
from alignrun.training.optim import flatten_optimizer, learning_rate, make_optimizer, restore_optimizer
from alignrun.types import Evaluation, Evaluator

SEQUENCES, TARGETS = "sequences", "targets"
"""What sums of a step are divided by, beside the sums."""
MEASURES = ("kl", "win_rate", "accuracy", "loss")
"""Metrics of an evaluation that are finite unless the weights are broken."""
REPEATED = {signal.SIGINT: 0.3, signal.SIGTERM: 5.0}
"""Seconds within which a further signal to stop is the same one: launchers send it on to those who have it already."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a run has come."""

    step: int
    evaluated: bool
    """Whether an evaluation of this step is recorded."""
    examples: int = 0
    """Examples of the data that the steps have taken."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    step: int
    evaluation: Evaluation | None
    """None where the run was interrupted."""
    stopped_by: signal.Signals | None


class Trainer:
    """Runs an algorithm from one step to the last.

    Several processes run the same loop on the same batches, each with the whole trained weights; the gradient of a step
    is the sum over them, and only the main one writes.
    """

    def __init__(
        self,
        config: Config,
        trained: Trained,
        algorithm: Algorithm,
        data: Dataset,
        evaluate: Evaluator,
        run: RunDirectory,
    ) -> None:
        self._config, self._trained, self._algorithm = config, trained, algorithm
        self._data, self._evaluate = data, evaluate
        self._run = run
        self._weights, self._beside = trained.trainable(), algorithm.trainable()
        self._trainable = {**self._weights, **self._beside}
        self._optimizer = make_optimizer(config.optim, self._trainable.values())
        self._skipped = 0
        self._micro_batch_size = config.train.micro_batch_size
        self.tracking: Tracking | None = None
        """Where the run is recorded; None until it is."""

    def restore(self, saved: Checkpoint, batch_size: int) -> Progressed:
        """Take weights and optimiser state from a checkpoint; where to go on from.

        Args:
            saved: the checkpoint.
            batch_size: that of its steps, where it does not say how many examples they took.

        Raises:
            InputError: the checkpoint belongs to another configuration.
        """
        restore_weights(self._weights, saved)
        restore_weights(self._algorithm_state(), saved, "algorithm")
        configured = [{key: group[key] for key in group if key != "params"} for group in self._optimizer.param_groups]
        state, names = saved.state, list(self._trainable)
        try:
            restore_optimizer(self._optimizer, names, saved.tensors["optimizer"], state["optimizer"])
            self._skipped = int(state.get("skipped", 0))
            examples = int(state.get("examples", saved.step * batch_size))
            evaluated = bool(state["evaluated"])
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise InputError(
                f"{saved.path}: its state is not what this version writes ({type(error).__name__}: "
                f"{one_line(error, 120)}): resume from another checkpoint with --step"
            ) from None
        for group, settings in zip(self._optimizer.param_groups, configured, strict=True):
            group.update(settings)  # resuming may change the configuration, and then that is what counts
        return Progressed(saved.step, evaluated, examples)

    def fit(
        self, start: Progressed, begin: Callable[[], Tracking], progress: Progress, *, resumed: bool = False
    ) -> Outcome:
        """Train from `start` to the last step, and evaluate.

        Args:
            start: how far the run has come.
            begin: opens the records of the run. A resumed one changes nothing on the disk before its first step has
                succeeded, or its last evaluation where no step is left: only then is this called.
            progress: what a person sees.
            resumed: whether there is a run to be kept as it is until then.

        Raises:
            RunError: too many losses or gradients that are not finite, a preference that fails, or files that cannot
                be written.
        """
        self._begin, self._progress = begin, progress
        self._held: tuple[int, Evaluation] | None = None
        self._recorded = start.step if start.evaluated else None
        self._saved = (start.step, start.evaluated) if resumed else None
        train = self._config.train
        self._shift = start.examples - start.step * train.batch_size
        if not resumed:
            self._open()
        if not start.evaluated and self._due(start.step) and start.step < train.steps:
            self._record(start.step, self._measure(start.step))
        with stop_requested() as stopped_by:
            for done in range(start.step + 1, train.steps + 1):
                self._step(done - 1)
                if done == train.steps:
                    break
                number = distributed.largest(stopped_by() or 0)  # whichever process was told to stop, all do
                signalled = signal.Signals(number) if number else None
                if self._due(done) and not signalled:
                    self._record(done, self._measure(done))
                if signalled or (train.checkpoint_every and done % train.checkpoint_every == 0):
                    self._save(done)  # a stop does not wait for an evaluation; the resumed run makes up for it
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

    def _open(self) -> None:
        """Begin to write, with the evaluation that was held back until now."""
        if self.tracking is None:
            with distributed.raise_together():
                self.tracking = self._begin()
            if self._held is not None:
                self._record(*self._held)

    def _measure(self, step: int) -> Evaluation:
        """An evaluation; where it fails, the steps before it are saved."""
        try:
            evaluation = self._evaluate()
            broken = [name for name in MEASURES if not math.isfinite(evaluation.metrics.get(name, 0.0))]
            if broken:
                with distributed.raise_together():
                    raise RunError(
                        f"step {step}: {' and '.join(broken)} of the evaluation {'is' if len(broken) == 1 else 'are'} "
                        "not finite, as where weights have become too large: the state is saved; go on from an earlier "
                        f"step with `alignrun resume {self._run.path} --step N` and a lower optim.learning_rate"
                    )
            return evaluation
        except Exception as error:
            self._save(step, alone=not getattr(error, "raised_together", False))
            raise

    def _due(self, step: int) -> bool:
        every = self._config.evaluation.every
        return every > 0 and step % every == 0

    def _write_adapter(self) -> None:
        with distributed.raise_together(), writing(self._run.adapter):
            if not distributed.is_main():
                return
            for name, save in self._outputs().items():
                partial = self._run.path / f"{name}.writing"
                shutil.rmtree(partial, ignore_errors=True)
                save(partial)
                discard_output(self._run.path / name)
                partial.rename(self._run.path / name)

    def _outputs(self) -> dict[str, Callable[[Path], None]]:
        """How to write the weights of the newest checkpoint for others to load, by the name of the folder."""
        return {self._run.adapter.name: self._trained.save_adapter, **self._algorithm.exports()}

    def _step(self, step: int) -> None:
        started = time.perf_counter()
        rate = learning_rate(self._config.optim, step, self._config.train.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        updates: list[dict[str, float]] = []
        tokens = 0.0
        before: _Moment | None = None
        try:
            with distributed.others_there():
                given = self._data.batch_at(step, self._config.train.batch_size, self._shift)
                if self._algorithm.online:
                    given = batch_to(given, self._trained.device)
                for batch in self._algorithm.collect(given, step):
                    if before is not None:
                        self._return_to(before)
                        before = None
                    trial = isinstance(batch, Trial)
                    if trial:
                        before = self._moment()
                    measured = self._update(batch.batch if trial else batch, step, given)
                    if measured is None:
                        break  # what would follow builds on the update that was not made
                    tokens += measured.pop("tokens")
                    if not trial:
                        updates.append(measured)
        except RunError as error:
            if before is not None:
                self._return_to(before)
            if not updates:  # the state is still that of the step before, and worth keeping
                self._save(step, alone=not error.raised_together)
            raise
        seconds = time.perf_counter() - started
        names = updates[-1] if updates else {}
        metrics = {name: math.fsum(update[name] for update in updates) / len(updates) for name in names}
        if self._skipped:
            metrics["skipped_steps"] = self._skipped
        metrics |= {
            "learning_rate": rate,
            "epoch": self._examples(step + 1) / len(self._data),
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }
        self._open()
        assert self.tracking is not None
        if (step + 1) % self._config.train.log_every == 0 or step + 1 == self._config.train.steps:
            with distributed.raise_together():
                self.tracking.log(step + 1, metrics)
        self._progress.update(step + 1, metrics)
        self._check_drift(step + 1, metrics)

    def _check_drift(self, done: int, metrics: dict[str, float]) -> None:
        limit = self._config.train.max_kl
        if limit is not None and metrics.get("kl", 0.0) > limit:
            self._save(done)
            with distributed.raise_together():
                raise RunError(
                    f"step {done}: KL(policy ‖ reference) is {metrics['kl']:.3g} nats, above train.max_kl={limit:g}: "
                    f"the state is saved; go on with `alignrun resume {self._run.path} train.max_kl=…`, or from an "
                    "earlier step with a lower optim.learning_rate or a larger algo.kl_tau"
                )

    def _moment(self) -> "_Moment":
        optimizer, state = flatten_optimizer(self._optimizer, list(self._trainable))
        weights = {name: weight.detach().clone() for name, weight in self._trainable.items()}
        return _Moment(weights, {name: value.clone() for name, value in optimizer.items()}, state)

    @torch.no_grad()
    def _return_to(self, moment: "_Moment") -> None:
        for name, weight in self._trainable.items():
            weight.copy_(moment.weights[name])
        restore_optimizer(self._optimizer, list(self._trainable), moment.optimizer, moment.state)

    def _algorithm_state(self) -> dict[str, torch.Tensor]:
        return {**self._beside, **self._algorithm.state()}

    def _update(self, batch: Any, step: int, given: Any) -> dict[str, float] | None:
        """One update and what was measured, `tokens` as a sum; None where it was left out."""
        names, measured = self.accumulate(batch)
        *sums, norm, total = measured.tolist()  # the only wait for the device in a step, beside sampling
        metrics = {name: value / total for name, value in zip(names, sums, strict=True)}
        metrics["grad_norm"] = norm
        if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
            self._skip(step, given, metrics)
            return None
        self._optimizer.step()
        return metrics | {"tokens": metrics["tokens"] * total}

    def accumulate(self, batch: Any) -> tuple[list[str], torch.Tensor]:
        """Leave the clipped gradient of a batch in the weights, without waiting for the device.

        Where that takes more memory than there is, it starts again with micro-batches of half the size, which then
        stays: the gradient is the same. Processes that pass through one base in step cannot do that.

        Returns:
            What was measured, and its sums on the device, float64, with two more numbers behind them: the gradient's
            norm before clipping, and the count by which sums and gradient are divided.
        """
        while True:
            largest = len(distributed.share(count(batch)))
            size = min(self._micro_batch_size or largest, largest)
            try:
                sums, by_sequence = self._passes(batch, size)
                break
            except torch.OutOfMemoryError:
                if size == 1 or distributed.sharded():
                    raise
            # Out of the handler, whose traceback holds what the pass held.
            self._micro_batch_size = (size + 1) // 2
            release_memory()
            self._progress.note(
                f"out of memory with micro-batches of {size} prompts: going on with {self._micro_batch_size}, which "
                f"changes no gradient (train.micro_batch_size={self._micro_batch_size} saves the attempt)"
            )
        totals = distributed.all_reduce_sum(torch.stack(list(sums.values())))
        weights = list(self._trainable.values())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        distributed.all_reduce_sum_each(gradients)
        # One division by the global count, whatever the micro-batches were: exactly the gradient of one large batch.
        torch._foreach_div_(gradients, totals[-1])
        limit = self._config.optim.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(weights, limit)
        # Everything that was measured is divided by the targets.
        totals[:by_sequence] *= totals[-1] / totals[-2]
        names = [name for name in sums if name not in (SEQUENCES, TARGETS)]
        return names, torch.cat([totals[:-2], norm.double()[None], totals[-1:]])

    def _passes(self, batch: Any, size: int) -> tuple[dict[str, torch.Tensor], int]:
        """Leave the sum of the gradients of this process's rows in the weights.

        Returns:
            Sums on the device, float64: of what was measured, the first of them by sequences and the others by targets;
            then the numbers of sequences and of targets. And how many are by sequences.
        """
        self._optimizer.zero_grad(set_to_none=True)
        weights, device = list(self._trainable.values()), self._trained.device
        sums: dict[str, torch.Tensor] = {}
        targets: int | torch.Tensor = 0
        sequences = by_sequence = 0
        for micro, counts in micro_batches(batch, size):
            before = [weight.grad for weight in weights]
            if not counts:
                self._optimizer.zero_grad(set_to_none=True)
            # What no sampling has put on the device goes there in the smallest form that it has.
            loss = self._algorithm.loss(batch_to(trim(micro), device))
            loss.total.backward()
            if not counts:
                for weight, gradient in zip(weights, before, strict=True):
                    unused = None if weight.grad is None else torch.zeros_like(weight)
                    weight.grad = unused if gradient is None else gradient
            targets, sequences = targets + counts * loss.targets, sequences + counts * loss.sequences
            by_sequence = len(loss.per_sequence)
            measured = {**loss.per_sequence, **loss.metrics, "loss": loss.total.detach(), "tokens": loss.tokens}
            for name, value in measured.items():
                sums[name] = sums.get(name, 0) + (value.double() if counts else torch.zeros_like(value).double())
        for name, number in ((SEQUENCES, sequences), (TARGETS, targets)):
            sums[name] = torch.as_tensor(number, dtype=torch.float64, device=device)
        return sums, by_sequence

    def _skip(self, step: int, given: Any, metrics: dict[str, float]) -> None:
        """Write down a batch whose optimiser step is left out. Raises RunError where there have been too many."""
        path = self._run.path / "failed_batch.json"
        record = {"step": step + 1, "loss": str(metrics["loss"]), "grad_norm": str(metrics["grad_norm"])}
        with distributed.raise_together():
            if distributed.is_main():
                write_text_atomic(path, json.dumps(record | {"batch": as_json(given)}, ensure_ascii=False))
        limit = self._config.train.max_skipped_steps
        said = f"step {step + 1}: the loss is {metrics['loss']} and the gradient norm {metrics['grad_norm']}"
        if self._skipped < limit:
            self._skipped += 1
            self._progress.note(f"{said}: left out, {self._skipped} of at most {limit}; the batch is in {path}")
            return
        before = f", after {limit} that were left out" if limit else ""
        with distributed.raise_together():
            raise RunError(
                f"{said}{before}: that update was not made, the run is saved and the batch is in {path}: go on with a "
                f"lower learning rate, `alignrun resume {self._run.path} optim.learning_rate=…`, or "
                "model.dtype=float32"
            )

    def _record(self, step: int, evaluation: Evaluation) -> None:
        if self.tracking is None:
            self._held = step, evaluation
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
        """Examples that the steps so far have taken."""
        return step * self._config.train.batch_size + self._shift

    def _save(self, step: int, *, alone: bool = False) -> None:
        """Write a checkpoint, unless it stands already; `alone` where the others are elsewhere and cannot be asked how
        it went."""
        progressed = Progressed(step, self._recorded == step, self._examples(step))
        if self._saved == (step, progressed.evaluated):
            return
        with nullcontext() if alone else distributed.raise_together():
            if distributed.is_main():
                self._write_checkpoint(progressed)
        self._saved = step, progressed.evaluated

    def _write_checkpoint(self, progressed: Progressed) -> None:
        if self._saved is not None and self._saved[0] != progressed.step:
            with writing(self._run.adapter):  # they would stand for another step than the newest checkpoint
                for name in self._outputs():
                    discard_output(self._run.path / name)
        optimizer, state = flatten_optimizer(self._optimizer, list(self._trainable))
        groups: dict[str, Mapping[str, torch.Tensor]] = {"weights": self._weights, "optimizer": optimizer}
        if state_beside := self._algorithm_state():
            groups["algorithm"] = state_beside
        save_checkpoint(
            self._run.checkpoints,
            progressed.step,
            groups,
            {
                "optimizer": state,
                "evaluated": progressed.evaluated,
                "examples": progressed.examples,
                "skipped": self._skipped,
            },
            self._config.train.keep_checkpoints,
        )


@dataclass(frozen=True, slots=True)
class _Moment:
    """Weights and optimiser state as they were."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def restore_weights(live: Mapping[str, torch.Tensor], checkpoint: Checkpoint, group: str = "weights") -> None:
    """Copy the tensors of a saved group, which may be empty, into live ones of the same names, all or none.

    Raises:
        InputError: names or shapes differ.
    """
    saved = checkpoint.tensors.get(group, {})
    wrong = sorted(set(live) ^ set(saved)) or [
        name for name, tensor in live.items() if tensor.shape != saved[name].shape
    ]
    if wrong:
        raise InputError(
            f"{checkpoint.path} does not fit this model ({len(wrong)} tensors differ, as {wrong[0]}): "
            "resume with the model, adapter and algorithm of the run's own config.yaml"
        )
    kinds = [name for name, tensor in live.items() if tensor.is_floating_point() != saved[name].is_floating_point()]
    if kinds:
        raise InputError(
            f"{checkpoint.path}: {kinds[0]} holds {saved[kinds[0]].dtype} where the model has {live[kinds[0]].dtype}: "
            "it is no checkpoint of this run"
        )
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(saved[name])


def micro_batches(batch: Any, size: int) -> Iterator[tuple[Any, bool]]:
    """This process's rows of the batch, at most `size` at a time, and whether they count.

    Processes that pass through one base in step must all take as many passes, and every one must know what is measured:
    where its rows do not suffice, a process gets one again that does not count.
    """
    mine = distributed.share(count(batch))
    own = distributed.owned_rows(count(batch))
    for start in range(0, own, size):
        stop = min(start + size, own)
        yield rows(batch, slice(mine[start], mine[stop - 1] + 1)), True
    taken, wanted = -(-own // size), -(-len(mine) // size) if distributed.sharded() else 1
    for _ in range(taken, wanted):
        yield rows(batch, slice(mine[-1], mine[-1] + 1)), False


def as_json(batch: Any) -> Any:
    """A batch as JSON can hold it, for a reader who wants to see what went wrong."""
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    if is_dataclass(batch):
        return {field.name: as_json(getattr(batch, field.name)) for field in fields(batch)}
    return batch


@contextmanager
def stop_requested() -> Iterator[Callable[[], signal.Signals | None]]:
    """Within the context, SIGTERM and Ctrl-C are remembered; one that comes later again acts at once."""
    received: list[signal.Signals] = []
    previous: dict[signal.Signals, Any] = {}
    began = 0.0

    def remember(number: int, _frame: Any) -> None:
        nonlocal began
        if not received:
            received.append(signal.Signals(number))
            began = time.monotonic()
        elif time.monotonic() - began > REPEATED[signal.Signals(number)]:
            for name, handler in previous.items():
                signal.signal(name, handler)
            signal.raise_signal(number)

    for name in (signal.SIGTERM, signal.SIGINT):
        previous[name] = signal.signal(name, remember)
    try:
        yield lambda: received[0] if received else None
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
