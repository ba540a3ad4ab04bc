"""A reward or preference model compared with people, on held-out pairs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from alignrun.algorithms.base import Algorithm
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.config import Config
from alignrun.data.dataset import Dataset
from alignrun.data.pairs import PairSet
from alignrun.errors import InputError
from alignrun.evaluation.calibration import Floats, accuracy, brier, label_entropy, log_loss, reliability
from alignrun.evaluation.disagreement import (
    Intransitivity,
    Votes,
    agreement_with_disagreement,
    human_ceiling,
    intransitivity_of_pairs,
)
from alignrun.evaluation.heldout import accuracy_line, measure, with_accuracy
from alignrun.evaluation.plots import as_svg, reliability_plot
from alignrun.security.text import counted
from alignrun.types import Evaluation, Example

TRIPLES_PER_PROMPT = 20
"""The maximum number of triples judged per prompt."""
RELIABILITY_FILE = "reliability.svg"


class FeedbackEvaluator:
    """Accuracy, calibration, agreement with the annotators' disagreement, and intransitivity.

    Args:
        algorithm: the FeedbackAlgorithm that trains the model.
        data: the held-out pairs, a PairSet.
        encode: encodes further examples as such a set, without those that are too long.
        device: the model's device.
        config: the run's configuration.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        data: Dataset[Any],
        encode: Callable[[Sequence[Example]], Dataset[Any]],
        device: torch.device,
        config: Config,
    ) -> None:
        assert isinstance(data, PairSet)
        assert isinstance(algorithm, FeedbackAlgorithm)
        self._algorithm, self._data, self._encode, self._device = algorithm, data, encode, device
        self._config, self._confidence, self._seed = config, config.evaluation.confidence, config.seed

    def __call__(self) -> Evaluation:
        """All metrics on the held-out pairs, and the reliability diagram."""
        measured = measure(self._algorithm, self._data, self._config.evaluation.batch_size, self._device)
        predicted, examples = measured.probabilities, self._data.examples
        labels = np.array([example.label for example in examples])
        diagram = reliability(predicted, labels)
        metrics = with_accuracy(measured, self._data, self._confidence, self._seed)
        metrics |= {
            "ece": diagram.ece,
            "brier": brier(predicted, labels),
            "log_loss": log_loss(predicted, labels),
            "label_entropy": label_entropy(labels),
        }
        lines = [
            accuracy_line(metrics, self._confidence),
            (
                "calibration",
                f"expected error {diagram.ece:z.3f}, log loss {metrics['log_loss']:z.3f} nats "
                f"(entropy of the labels {metrics['label_entropy']:z.3f}), {RELIABILITY_FILE}",
            ),
        ]
        if found := agreement(predicted, [example.votes for example in examples]):
            metrics |= found
            lines.append(("agreement with people", agreement_in_words(found)))
        if self._algorithm.kind == "reward":  # transitive: further pairs would cost passes and say nothing
            metrics |= {"intransitive": 0.0, "intransitive_high": 0.0}
            lines.append(("intransitive triples", "none, by construction"))
        elif (circles := self._intransitivity(predicted)) is None:
            lines.append(("intransitive triples", "none asked: no held-out prompt has three completions to compare"))
        else:
            metrics |= {"intransitive": circles.share, "intransitive_high": circles.high}
            lines.append(
                (
                    "intransitive triples",
                    f"{circles.share:.3f}  ({self._confidence:.0%} interval {circles.low:.3f} to {circles.high:.3f}, "
                    f"{counted(circles.triples, 'triple')}; a coin 0.250)",
                )
            )
        title = f"{self._config.algo.name} on {self._config.model.name}, held-out pairs"
        return Evaluation(metrics, lines, files={RELIABILITY_FILE: as_svg(reliability_plot(diagram, title))})

    def _intransitivity(self, predicted: Floats) -> Intransitivity | None:
        """How often the model is intransitive on three completions of a prompt, including pairs not in the data."""
        return intransitivity_of_pairs(
            self._data.examples, predicted, self._further, TRIPLES_PER_PROMPT, self._confidence, self._seed
        )

    def _further(self, pairs: Sequence[Example]) -> Floats:
        """P of pairs that nobody labelled; NaN where two completions do not fit together, although each does alone."""
        try:
            fitting = self._encode(pairs)
        except InputError:  # none of them fits
            return np.full(len(pairs), np.nan)
        assert isinstance(fitting, PairSet)
        answers = measure(self._algorithm, fitting, self._config.evaluation.batch_size, self._device).probabilities
        known = {
            (example.text, example.chosen, example.rejected): answer
            for example, answer in zip(fitting.examples, answers, strict=True)
        }
        return np.array([known.get((pair.text, pair.chosen, pair.rejected), np.nan) for pair in pairs])


def agreement(predicted: ArrayLike, votes: Votes) -> dict[str, float]:
    """A model's P(chosen ≻ rejected) [N] against the votes of each pair; empty if no pair has two votes."""
    probabilities = np.asarray(predicted, dtype=np.float64)
    found, ceiling = agreement_with_disagreement(probabilities, votes), human_ceiling(votes)
    if found is None or ceiling is None:
        return {}
    scores, _ = accuracy(probabilities[ceiling.pairs], ceiling.majorities)
    correlations = {
        "preference_correlation": found.preference_correlation,
        "certainty_correlation": found.certainty_correlation,
    }
    return {
        "human_agreement": ceiling.agreement,
        "agreement_with_majority": float(scores.mean()),
        "excess_log_loss": found.excess_log_loss,
        **{name: value for name, value in correlations.items() if value is not None},
    }


def agreement_in_words(found: dict[str, float]) -> str:
    """The result of `agreement`, on one line."""
    majority, annotator = found["agreement_with_majority"], found["human_agreement"]
    shown = f"with the majority of the others {majority:z.3f} (an annotator: {annotator:z.3f})"
    for name in ("preference", "certainty"):
        if (value := found.get(f"{name}_correlation")) is not None:
            shown += f", {name} ρ {value:z.2f}"
    return shown
