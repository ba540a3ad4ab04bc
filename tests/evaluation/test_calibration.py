import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from alignrun.errors import InputError
from alignrun.evaluation.calibration import Bin, accuracy, brier, label_entropy, log_loss, reliability

Floats = NDArray[np.float64]


def simulated(pairs: int, seed: int = 0) -> tuple[Floats, Floats]:
    """The true probabilities and one vote each, written as data are: the preferred completion first."""
    rng = np.random.default_rng(seed)
    true = rng.random(pairs)
    swapped = rng.random(pairs) > true
    return np.where(swapped, 1 - true, true), np.ones(pairs)


def test_accuracy_by_hand() -> None:
    scores, judged = accuracy([0.9, 0.2, 0.5, 0.7, 0.5, 0.1], [1.0, 0.6, 0.8, 0.5, 0.5, 0.3])
    assert scores.tolist() == [1, 0, 0.5, 1]
    assert judged.tolist() == [True, True, True, False, False, True]


def test_accuracy_of_a_narrow_preference_is_whole() -> None:
    scores, _ = accuracy(np.array([0.5000001, 0.4999999], dtype=np.float32), [0.51, 0.51])
    assert scores.tolist() == [1, 0]


def test_accuracy_without_any_label_to_be_right_about() -> None:
    scores, judged = accuracy([0.9, 0.2], [0.5, 0.5])
    assert (len(scores), judged.tolist()) == (0, [False, False])


def test_reliability_by_hand() -> None:
    """0.62, 0.68 and 0.31 are sure of one side by 0.62 to 0.69; 0.97 is in the last bin; 1 belongs to it too."""
    result = reliability([0.62, 0.68, 0.31, 0.97, 1.0], [1.0, 0.5, 0.8, 1.0, 0.6])
    assert result.pairs == 5
    label = (1.0 + 0.5 + 0.2) / 3
    np.testing.assert_allclose(
        [(b.low, b.high, b.count) for b in result.bins],
        [(0.0, 0.1, 2), (0.3, 0.4, 3), (0.6, 0.7, 3), (0.9, 1.0, 2)],
        atol=1e-12,
    )
    assert [b.predicted for b in result.bins] == pytest.approx([0.015, 1 - 1.99 / 3, 1.99 / 3, 0.985])
    assert [b.label for b in result.bins] == pytest.approx([0.2, 1 - label, label, 0.8])
    assert result.ece == pytest.approx((3 * (1.99 / 3 - label) + 2 * (0.985 - 0.8)) / 5)


def naive(predicted: Floats, labels: Floats, bins: int) -> tuple[list[tuple[float, float, float]], float]:
    """Both orders one by one; those of undecided pairs by halves in the bins on both sides of ½."""
    held: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for p, label in zip(predicted, labels, strict=True):
        for q, right in ((p, label), (1 - p, 1 - label)):
            if q == 0.5:
                held[bins // 2].append((q, right, 0.5))
                held[bins // 2 - 1].append((q, right, 0.5))
            else:
                held[next(b for b in range(bins) if q < (b + 1) / bins or b == bins - 1)].append((q, right, 1.0))
    rows, error, total = [], 0.0, 0.0
    for _, members in sorted(held.items()):
        weight = sum(w for _, _, w in members)
        p = sum(q * w for q, _, w in members) / weight
        label = sum(right * w for _, right, w in members) / weight
        rows.append((p, label, weight))
        error += weight * abs(p - label)
        total += weight
    return rows, error / total


@pytest.mark.parametrize("bins", [2, 4, 10, 20])
@pytest.mark.parametrize("seed", range(5))
def test_reliability_equals_loops_over_both_orders(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    predicted = np.concatenate([rng.random(40), [0.5] * 5, rng.beta(0.1, 0.1, 20)])
    labels = rng.choice([0.5, 2 / 3, 0.75, 1.0, 0.0, 0.25], 65)
    result = reliability(predicted, labels, bins)
    rows, error = naive(predicted, labels, bins)
    np.testing.assert_allclose([(b.predicted, b.label, b.count) for b in result.bins], rows, atol=1e-12)
    assert result.ece == pytest.approx(error)
    assert sum(b.count for b in result.bins) == 2 * 65


@pytest.mark.parametrize("seed", range(5))
def test_writing_pairs_the_other_way_round_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Multiples of 1/16 have exact complements, and 8 bins have them for bounds.
    predicted, labels = rng.integers(0, 17, 50) / 16, rng.integers(0, 5, 50) / 4
    flip = rng.random(50) < 0.5
    other = np.where(flip, 1 - predicted, predicted), np.where(flip, 1 - labels, labels)
    assert reliability(*other, bins=8) == reliability(predicted, labels, bins=8)
    assert brier(*other) == brier(predicted, labels)
    assert log_loss(*other) == pytest.approx(log_loss(predicted, labels), rel=1e-14)
    assert np.array_equal(accuracy(*other)[0], accuracy(predicted, labels)[0])


def test_a_bound_belongs_to_the_surer_bin_on_both_sides() -> None:
    result = reliability([0.7, 0.3, 0.8], [1, 1, 1])
    assert [(round(b.low, 9), b.count) for b in result.bins] == [(0.1, 1), (0.2, 2), (0.7, 2), (0.8, 1)]


def test_empty_bins_are_left_out() -> None:
    result = reliability([0.95], [1.0])
    assert result.bins == (
        Bin(pytest.approx(0.0), pytest.approx(0.1), pytest.approx(0.05), 0.0, 1),
        Bin(0.9, 1.0, 0.95, 1.0, 1),
    )


def test_an_undecided_model_is_calibrated() -> None:
    """Every label is 1 only because the preferred completion is written first."""
    result = reliability([0.5] * 4, [1.0] * 4)
    assert result.ece == 0
    assert [(b.predicted, b.label, b.count) for b in result.bins] == [(0.5, 0.5, 4), (0.5, 0.5, 4)]


def test_a_perfect_model_is_calibrated_although_all_labels_are_one() -> None:
    predicted, labels = simulated(20_000)
    assert reliability(predicted, labels).ece < 0.01
    as_written = abs(np.mean(predicted) - np.mean(labels))
    assert as_written > 0.3


def test_noise_alone_gives_the_error_that_the_docstring_states() -> None:
    errors = [reliability(*simulated(1000, seed)).ece for seed in range(200)]
    assert np.mean(errors) == pytest.approx(0.25 * math.sqrt(10 / 1000), rel=0.15)


def test_an_over_confident_model_has_the_error_of_its_confidence() -> None:
    assert reliability([0.9] * 10, [0.7] * 10).ece == pytest.approx(0.2)
    # Right in seven of ten: the data write the three others with the model's favourite last.
    assert reliability([0.9] * 7 + [0.1] * 3, [1.0] * 10).ece == pytest.approx(0.2)


def test_a_sharpened_model_has_the_error_of_the_integral() -> None:
    """With logits doubled, P = p²/(p² + (1−p)²); the error is the mean of P − p for p in [½, 1]."""
    true, labels = simulated(200_000)
    sharpened = true**2 / (true**2 + (1 - true) ** 2)
    grid = (np.arange(10_000) + 0.5) / 20_000 + 0.5
    expected = float(np.mean(grid**2 / (grid**2 + (1 - grid) ** 2) - grid))
    assert reliability(sharpened, labels).ece == pytest.approx(expected, abs=0.004)


def test_scores_by_hand() -> None:
    predicted, labels = [0.8, 0.3], [1.0, 0.75]
    assert brier(predicted, labels) == pytest.approx((0.04 + 0.2025) / 2)
    loss = -(math.log(0.8) + 0.75 * math.log(0.3) + 0.25 * math.log(0.7)) / 2
    assert log_loss(predicted, labels) == pytest.approx(loss)
    assert label_entropy(labels) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 2)


def test_scores_of_an_undecided_model() -> None:
    assert brier([0.5, 0.5], [1, 0]) == 0.25
    assert log_loss([0.5, 0.5], [1, 0.6]) == pytest.approx(math.log(2))


def test_the_entropy_is_the_least_log_loss() -> None:
    labels = np.array([0.5, 0.6, 0.75, 1.0, 0.0])
    floor = label_entropy(labels)
    assert log_loss(labels, labels) == pytest.approx(floor, abs=1e-7)
    for step in (-0.05, 0.05):
        assert log_loss(np.clip(labels + step, 0, 1), labels) > floor + 1e-3


@pytest.mark.parametrize("low", [0.0, 1e-30])
def test_saturated_answers_cost_the_same_and_a_finite_amount_on_both_sides(low: float) -> None:
    high = float(np.float32(1 - low))
    assert log_loss([low], [1.0]) == pytest.approx(24 * math.log(2))
    assert log_loss([high], [0.0]) == pytest.approx(24 * math.log(2))
    assert log_loss([low, high], [0.0, 1.0]) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("measure", [accuracy, reliability, brier, log_loss])
@pytest.mark.parametrize(
    ("predicted", "labels", "problem"),
    [
        ([0.1, 0.2], [1.0], "2 predictions for 1 labels"),
        ([], [], "predicted must be a list of one or more"),
        ([[0.1]], [[1.0]], r"predicted must be a list .* \(1, 1\)"),
        ([0.1, 1.2], [1.0, 1.0], r"predicted must lie in \[0, 1\]; row 1 is 1.2"),
        ([0.1, math.nan], [1.0, 1.0], "row 1 is nan"),
        ([0.1, 0.1], [-0.5, 1.0], r"labels must lie in \[0, 1\]; row 0 is -0.5"),
    ],
)
def test_unusable_pairs(
    measure: Callable[..., object], predicted: list[float], labels: list[float], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        measure(predicted, labels)


@pytest.mark.parametrize("bins", [0, -2, 1, 5])
def test_bins_must_be_even(bins: int) -> None:
    with pytest.raises(InputError, match="even"):
        reliability([0.5], [1.0], bins)
