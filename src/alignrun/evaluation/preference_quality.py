"""How good a preference is, measured on labelled pairs.

Legend: N pairs of a `chosen` and a `rejected` completion, P = P(chosen ≻ rejected) of the preference and `label` the
share of people who prefer `chosen`, ½ or more. A pair is decided if its label is not ½; other pairs have no right
answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignrun.evaluation.calibration import Floats, accuracy, brier, label_entropy, log_loss, reliability
from alignrun.evaluation.disagreement import Ask, Intransitivity, intransitivity_of_pairs
from alignrun.evaluation.heldout import length_leads
from alignrun.evaluation.human_agreement import agreement
from alignrun.evaluation.intervals import SHARE, clustered_mean_interval
from alignrun.evaluation.results import Estimate
from alignrun.types import Example


@dataclass(frozen=True, eq=False, slots=True)
class AssessedPairs:
    """Pairs, and a preference's probabilities for them."""

    examples: Sequence[Example]
    probabilities: Floats
    """[N] P."""
    orders: Floats | None
    """[N, 2] P with `chosen` shown first, and with it shown second; None if the preference sees no order."""
    categories: Sequence[str] | None = None
    """The category of each; None if there are none."""


@dataclass(frozen=True, slots=True)
class Category:
    """The decided pairs of one category."""

    name: str
    pairs: int
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class Position:
    """The effect of the order in which two completions are shown, before both orders are averaged."""

    first_wins: Estimate
    """The mean probability that the completion shown first wins, over both orders: ½ without a bias."""
    consistent: Estimate
    """The share of pairs on which both orders name the same winner."""
    chosen_first: Estimate
    """Accuracy with `chosen` shown first."""
    chosen_second: Estimate
    """Accuracy with `chosen` shown second."""


@dataclass(frozen=True, slots=True)
class Length:
    """Decided pairs whose completions differ in length, in characters."""

    preferred: Estimate
    """How often the preference prefers the longer completion; an undecided pair counts as half."""
    right: Estimate
    """How often people prefer it."""
    where_right: Estimate | None
    """Accuracy on pairs whose longer completion is the better; None without such pairs."""
    where_wrong: Estimate | None
    """Accuracy on pairs whose shorter completion is the better; None without such pairs."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How good the probabilities are, over all pairs."""

    ece: float
    """The expected calibration error with ten bins."""
    brier: float
    log_loss: float
    """Nats."""
    label_entropy: float
    """The entropy of the labels, in nats: the smallest possible log loss."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a preference is on N judged pairs."""

    pairs: int
    decided: int
    """Pairs whose label is not ½."""
    prompts: int
    """Prompts of the decided pairs."""
    ties: int
    """Decided pairs on which the preference is exactly ½; each counts as half right."""
    accuracy: Estimate
    longer_accuracy: Estimate
    """The accuracy of always preferring the longer completion."""
    categories: tuple[Category, ...]
    """In decreasing order of pairs; empty without categories."""
    macro_accuracy: float | None
    """The mean over the categories."""
    position: Position | None
    """None if the preference sees no order."""
    length: Length | None
    """None if all completions have equal length."""
    calibration: Calibration
    agreement: dict[str, float]
    """The result of `human_agreement.agreement`; empty if no pair has two votes."""
    intransitivity: Intransitivity | None
    """None if no prompt has three completions, or no triple was judged."""


def measure_quality(
    judged: AssessedPairs, ask: Ask | None, triples: int, confidence: float, seed: int
) -> Quality | None:
    """Everything that can be measured; None if no pair is decided.

    Args:
        judged: N judged pairs.
        ask: judges further pairs, which complete triples; None skips transitivity.
        triples: the maximum number per prompt.
        confidence: the level of the intervals, which are over prompts.
        seed: for the intervals and the choice of triples.
    """
    examples, p = judged.examples, judged.probabilities
    labels = np.array([example.label for example in examples])
    prompts = np.array([example.text for example in examples], dtype=object)
    scores, decided = accuracy(p, labels)
    if not decided.any():
        return None

    def estimate(values: NDArray[np.floating], of: NDArray[np.bool_]) -> Estimate:
        """The mean of the values of the pairs in `of`."""
        clusters = prompts[of].tolist()
        low, high = clustered_mean_interval(values, clusters, confidence, seed, SHARE)
        return Estimate(float(values.mean()), low, high, len(set(clusters)))

    leads = length_leads(examples)
    categories = _categories(judged, scores, decided, estimate)
    return Quality(
        pairs=len(examples),
        decided=len(scores),
        prompts=len(set(prompts[decided].tolist())),
        ties=int((scores == 0.5).sum()),
        accuracy=estimate(scores, decided),
        longer_accuracy=estimate(accuracy(0.5 + 0.5 * np.sign(leads), labels)[0], decided),
        categories=categories,
        macro_accuracy=float(np.mean([one.accuracy.value for one in categories])) if categories else None,
        position=_position(judged.orders, labels, decided, estimate),
        length=_length(leads[decided], scores, decided, estimate),
        calibration=Calibration(
            reliability(p, labels).ece, brier(p, labels), log_loss(p, labels), label_entropy(labels)
        ),
        agreement=agreement(p, [example.votes for example in examples]),
        intransitivity=(
            None if ask is None or not triples else intransitivity_of_pairs(examples, p, ask, triples, confidence, seed)
        ),
    )


Estimator = Callable[[NDArray[np.floating], NDArray[np.bool_]], Estimate]


def _categories(
    judged: AssessedPairs, scores: Floats, decided: NDArray[np.bool_], estimate: Estimator
) -> tuple[Category, ...]:
    if judged.categories is None:
        return ()
    names = np.array(judged.categories, dtype=object)
    own = names[decided]
    found = [
        Category(name, int((own == name).sum()), estimate(scores[own == name], decided & (names == name)))
        for name in dict.fromkeys(own.tolist())
    ]
    return tuple(sorted(found, key=lambda one: (-one.pairs, one.name)))


def _position(
    orders: Floats | None, labels: Floats, decided: NDArray[np.bool_], estimate: Estimator
) -> Position | None:
    if orders is None:
        return None
    sides = np.sign(orders - 0.5)
    return Position(
        first_wins=estimate((orders[:, 0] + 1 - orders[:, 1]) / 2, np.ones(len(orders), dtype=bool)),
        consistent=estimate((sides[:, 0] == sides[:, 1]).astype(np.float64), np.ones(len(orders), dtype=bool)),
        chosen_first=estimate(accuracy(orders[:, 0], labels)[0], decided),
        chosen_second=estimate(accuracy(orders[:, 1], labels)[0], decided),
    )


def _length(leads: NDArray[np.int64], scores: Floats, decided: NDArray[np.bool_], estimate: Estimator) -> Length | None:
    """`leads` and `scores` of the decided pairs, whose labels are above ½: `chosen` is the better."""
    longer, shorter = leads > 0, leads < 0

    def over(values: Floats, of: NDArray[np.bool_]) -> Estimate | None:
        where = decided.copy()
        where[decided] = of
        return estimate(values[of], where) if of.any() else None

    preferred = over(np.where(longer, scores, 1 - scores), longer | shorter)
    right = over(longer.astype(np.float64), longer | shorter)
    if preferred is None or right is None:
        return None
    return Length(preferred, right, over(scores, longer), over(scores, shorter))
