"""The loss and the accuracy of an algorithm on held-out data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignrun import distributed
from alignrun.algorithms.base import Algorithm, Loss
from alignrun.algorithms.common.scoring import scoring
from alignrun.data.dataset import Dataset
from alignrun.data.pairs import PairSet
from alignrun.evaluation.calibration import accuracy
from alignrun.evaluation.intervals import SHARE, clustered_mean_interval
from alignrun.evaluation.results import Estimate
from alignrun.evaluation.settled import undecided
from alignrun.models.device import batch_to
from alignrun.security.text import counted
from alignrun.types import Evaluation, Example


@dataclass(frozen=True, slots=True)
class Measured:
    """An algorithm's own loss and metrics over a whole data set."""

    metrics: dict[str, float]
    """Means over the targets: `loss` and the algorithm's other metrics."""
    targets: int
    probabilities: NDArray[np.float64]
    """[N] P(chosen ≻ rejected) of every pair, in the order of the data; empty if the data are not pairs."""


@torch.no_grad()
def measure(algorithm: Algorithm, data: Dataset[Any], batch_size: int, device: torch.device) -> Measured:
    """Compute the loss on every example once, without a gradient; batches go to processes round-robin."""
    sums: dict[str, torch.Tensor] = {}
    targets: int | torch.Tensor = 0
    probabilities = torch.zeros(len(data) if isinstance(data, PairSet) else 0, dtype=torch.float64)
    memory = scoring(batch_size, "evaluation.batch_size")

    def losses(rows: Sequence[int], size: int) -> list[tuple[Sequence[int], Loss]]:
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [(part, algorithm.loss(batch_to(data.batch(part), device))) for part in parts]

    for rows, counts in distributed.round_robin(data.all_rows(batch_size)):
        for part, loss in memory.that_fit(len(rows), partial(losses, rows)):
            for name, value in {**loss.metrics, "loss": loss.total}.items():
                sums[name] = sums.get(name, 0) + (value.double() if counts else torch.zeros_like(value).double())
            if not counts:
                continue
            targets = targets + loss.targets
            if loss.probabilities is not None:
                probabilities[part] = loss.probabilities.double().cpu()
    added = [*(value.cpu() for value in sums.values()), torch.as_tensor(targets, dtype=torch.float64).cpu()]
    *values, total = distributed.all_reduce_sum(torch.stack(added)).tolist()
    return Measured(
        metrics={name: value / total for name, value in zip(sums, values, strict=True)},
        targets=int(total),
        probabilities=distributed.all_reduce_sum(probabilities).numpy(),
    )


class LikelihoodEvaluator:
    """Held-out demonstrations under the policy."""

    def __init__(self, algorithm: Algorithm, data: Dataset[Any], batch_size: int, device: torch.device) -> None:
        self._algorithm, self._data, self._batch_size, self._device = algorithm, data, batch_size, device

    def __call__(self) -> Evaluation:
        """Loss and perplexity over the tokens of the completions."""
        measured = measure(self._algorithm, self._data, self._batch_size, self._device)
        loss = measured.metrics["loss"]
        perplexity = math.exp(min(loss, 700.0))
        shown = f"{loss:z.3f} nats a token (perplexity {perplexity:z.2f}, {counted(len(self._data), 'demonstration')})"
        return Evaluation({**measured.metrics, "perplexity": perplexity}, [("held-out loss", shown)])


class PairsEvaluator:
    """Held-out pairs under a policy's implicit reward."""

    def __init__(
        self, algorithm: Algorithm, data: PairSet, batch_size: int, device: torch.device, confidence: float, seed: int
    ) -> None:
        self._algorithm, self._data, self._batch_size, self._device = algorithm, data, batch_size, device
        self._confidence, self._seed = confidence, seed

    def __call__(self) -> Evaluation:
        """The algorithm's metrics, and the accuracy of the implicit reward."""
        measured = measure(self._algorithm, self._data, self._batch_size, self._device)
        metrics = with_accuracy(measured, self._data, self._confidence, self._seed)
        shown = f"{metrics['loss']:z.4f}, reward margin {metrics['rewards/margin']:z.3f}"
        return Evaluation(metrics, [accuracy_line(metrics, self._confidence), ("held-out loss", shown)])


def with_accuracy(measured: Measured, data: PairSet, confidence: float, seed: int) -> dict[str, float]:
    """The metrics, with their accuracy, in which a tie is half right, replaced by that of `accuracy_on`."""
    own = {name: value for name, value in measured.metrics.items() if name != "accuracy"}
    return own | accuracy_on(measured.probabilities, data, confidence, seed)


def accuracy_on(probabilities: NDArray[np.float64], data: PairSet, confidence: float, seed: int) -> dict[str, float]:
    """`accuracy`, `length_accuracy`, which is what the longer completion would have got, and `over_length`, their
    difference, each with its interval over prompts; empty if all pairs are ties, which have no right answer.
    """
    labels = np.array([example.label for example in data.examples])
    lengths = length_leads(data.examples)
    scores, decided = accuracy(probabilities, labels)
    by_length, _ = accuracy(0.5 + 0.5 * np.sign(lengths), labels)
    if not decided.any():
        return {}
    clusters = [example.text for example, known in zip(data.examples, decided, strict=True) if known]
    result: dict[str, float] = {"decided_pairs": len(clusters), "decided_prompts": len(set(clusters))}
    for name, values, limits in (
        ("accuracy", scores, SHARE),
        ("length_accuracy", by_length, SHARE),
        ("over_length", scores - by_length, (-1.0, 1.0)),
    ):
        low, high = clustered_mean_interval(values, clusters, confidence, seed, limits)
        result |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    return result


def length_leads(examples: Sequence[Example]) -> NDArray[np.int64]:
    """[N] the number of characters by which the chosen completion is longer than the rejected one."""
    return np.array([len(str(example.chosen)) - len(str(example.rejected)) for example in examples])


def accuracy_line(metrics: dict[str, float], confidence: float) -> tuple[str, str]:
    """The accuracy as a line of text."""
    if "accuracy_low" not in metrics:
        return "held-out accuracy", "none: every held-out pair is a tie"
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    found = Estimate(metrics["accuracy"], low, high, int(metrics["decided_prompts"]))
    warned = undecided(found, "chance")
    return (
        "held-out accuracy",
        f"{metrics['accuracy']:z.3f}  ({confidence:.0%} interval {low:z.3f} to {high:z.3f}, "
        f"{counted(metrics['decided_pairs'], 'pair')} of {counted(metrics['decided_prompts'], 'prompt')}, no ties; "
        f"the longer completion {metrics['length_accuracy']:z.3f}{warned and '; '}{warned})",
    )
