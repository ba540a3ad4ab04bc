"""How good a preference model's probabilities are: accuracy, calibration and proper scores on labelled pairs.

Legend: N held-out pairs; `predicted` is the model's P(chosen ≻ rejected) and `labels` the share of people who agree,
both [N] in [0, 1]. No result depends on the order of the completions in a pair.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from alignrun.errors import InputError

Floats = NDArray[np.float64]

SMALLEST = 2.0**-24
"""The smallest probability in a log loss. Models answer in float32, which may round values within this of 1 to 1."""


def checked(name: str, values: ArrayLike) -> Floats:
    """The values as float64 [N]. Raises InputError if they are not a list of probabilities."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise InputError(f"evaluation: {name} must be a list of one or more probabilities, not of shape {array.shape}")
    wrong = np.flatnonzero(~((array >= 0) & (array <= 1)))
    if len(wrong):
        raise InputError(f"evaluation: {name} must lie in [0, 1]; row {wrong[0]} is {array[wrong[0]]:g}")
    return array


def checked_pairs(predicted: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    """Both as float64 [N]. Raises InputError if they are not probabilities or differ in length."""
    first, second = checked("predicted", predicted), checked("labels", labels)
    if len(first) != len(second):
        raise InputError(f"evaluation: {len(first)} predictions for {len(second)} labels")
    return first, second


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Per pair: 1 if the model prefers what people prefer, 0 if it prefers the other, ½ if it is undecided.

    Pairs with label ½ have no right answer and are left out. Returns the K scores and the mask of their pairs, which
    also selects their clusters. Shapes: [N], [N] -> [K], [N] bool. Raises InputError.
    """
    p, labels = checked_pairs(predicted, labels)
    judged = labels != 0.5
    scores = 0.5 + 0.5 * np.sign(p - 0.5) * np.sign(labels - 0.5)
    return scores[judged], judged


@dataclass(frozen=True, slots=True)
class Bin:
    """The ordered pairs whose predicted probability lies between two bounds; never empty."""

    low: float
    high: float
    predicted: float
    """Their mean predicted probability."""
    label: float
    """Their mean label."""
    count: int
    """The number of pairs."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted probabilities against labels, bin by bin; symmetric about (½, ½)."""

    bins: tuple[Bin, ...]
    """From the lowest to the highest, without empty ones."""
    pairs: int
    """N; the bins count 2N ordered pairs."""

    @property
    def ece(self) -> float:
        """The expected calibration error Σ_b n_b/(2N)·|mean p − mean label| (Naeini et al., AAAI 2015).

        Noise in the mean labels makes it positive, by about ¼√(bins/N), even for a perfect model.
        """
        return sum(b.count * abs(b.predicted - b.label) for b in self.bins) / (2 * self.pairs)


def reliability(predicted: ArrayLike, labels: ArrayLike, bins: int = 10) -> Reliability:
    """Sort every pair, in both orders, by predicted probability into equal bins: (p, label) and (1 − p, 1 − label).

    Both orders are used because preference data name the preferred completion `chosen`: in that order alone every label
    is ½ or more, and a perfectly calibrated model looks underconfident (it predicts 0.7, and 100% are `chosen`). With
    both orders the diagram is symmetric, and the error equals that of the model's confidence max(p, 1 − p) in its
    choice. Half of each undecided pair goes to either side of ½.

    `bins` must be even: a bin around ½ would hold both orders of its pairs and always look calibrated.
    Shapes: [N], [N]. Raises InputError.
    """
    p, labels = checked_pairs(predicted, labels)
    if bins < 2 or bins % 2:
        raise InputError(f"evaluation: the number of bins must be even and positive, not {bins}")
    # Only the side of ½ that the model prefers is sorted, then mirrored: sorted separately, the other order would fall
    # into the wrong bin wherever p is a bound, or 1 − p is rounded.
    confidence = np.maximum(p, 1 - p)
    right = np.select([p > 0.5, p < 0.5], [labels, 1 - labels], 0.5)
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    upper: list[Bin] = []
    for b in range(bins // 2, bins):
        here = index == b
        if count := int(here.sum()):
            low, high = b / bins, (b + 1) / bins
            upper.append(Bin(low, high, float(confidence[here].mean()), float(right[here].mean()), count))
    lower = [Bin(1 - b.high, 1 - b.low, 1 - b.predicted, 1 - b.label, b.count) for b in reversed(upper)]
    return Reliability((*lower, *upper), len(p))


def brier(predicted: ArrayLike, labels: ArrayLike) -> float:
    """The mean of (p − label)² (Brier, 1950); an undecided model has ¼ on labels 0 and 1.

    For a soft label it does not include label·(1 − label), the variance of single votes around it. Shapes:
    [N], [N]. Raises InputError.
    """
    p, labels = checked_pairs(predicted, labels)
    return float(np.square(p - labels).mean())


def log_loss(predicted: ArrayLike, labels: ArrayLike) -> float:
    """The mean of −label·log p − (1 − label)·log(1 − p) in nats; an undecided model has log 2.

    No model is below `label_entropy`. p and 1 − p are clipped at `SMALLEST`, so that a saturated answer costs at most
    16.6 rather than infinity. Shapes: [N], [N]. Raises InputError.
    """
    p, labels = checked_pairs(predicted, labels)
    # Clip both sides: the two orders of a pair must cost the same.
    wins, loses = np.maximum(p, SMALLEST), np.maximum(1 - p, SMALLEST)
    return float(-(labels * np.log(wins) + (1 - labels) * np.log(loses)).mean())


def label_entropy(labels: ArrayLike) -> float:
    """The mean entropy of the labels in nats: the log loss of a model that knows them, [N]. Raises InputError."""
    labels = checked("labels", labels)
    return float(entr(labels).mean() + entr(1 - labels).mean())
