"""How good a preference is: every number against a count by hand."""

import itertools

import numpy as np
import pytest

from alignrun.evaluation.preference_quality import AssessedPairs, Category, Quality, measure_quality
from alignrun.evaluation.results import Estimate
from alignrun.evaluation.rewardbench import CODE, SECTIONS, section_scores
from alignrun.types import Example

# prompt, chosen, rejected, label, P, P with chosen first, P with chosen second, category
TABLE = [
    ("p", "long answer", "short", 1.0, 0.9, 1.0, 0.8, "a"),
    ("p", "s", "a longer one", 0.75, 0.4, 0.7, 0.1, "a"),
    ("q", "same", "size", 1.0, 0.5, 0.9, 0.1, "a"),
    ("q", "bb", "a", 0.5, 0.7, 0.8, 0.6, "b"),
    ("r", "xyz", "x", 1.0, 0.3, 0.4, 0.2, "b"),
    ("s", "u", "uvw", 1.0, 0.2, 0.3, 0.1, "b"),
]


def judged(rows: list[tuple[str, str, str, float, float, float, float, str]]) -> AssessedPairs:
    examples = [
        Example(prompt, f"row {n}", one, other, label) for n, (prompt, one, other, label, *_) in enumerate(rows)
    ]
    numbers = np.array([row[4:7] for row in rows])
    return AssessedPairs(examples, numbers[:, 0], numbers[:, 1:], [row[7] for row in rows])


def test_every_number_is_that_of_a_count() -> None:
    found = measure_quality(judged(TABLE), None, 20, 0.95, 0)
    assert isinstance(found, Quality)
    assert (found.pairs, found.decided, found.prompts, found.ties) == (6, 5, 4, 1)
    assert found.accuracy.value == pytest.approx((1 + 0 + 0.5 + 0 + 0) / 5)
    assert found.accuracy.low <= found.accuracy.value <= found.accuracy.high
    assert found.longer_accuracy.value == pytest.approx((1 + 0 + 0.5 + 1 + 0) / 5)
    assert [(one.name, one.pairs, one.accuracy.value) for one in found.categories] == [("a", 3, 0.5), ("b", 2, 0.0)]
    position, length = found.position, found.length
    assert position is not None
    assert position.first_wins.value == pytest.approx(np.mean([(one + 1 - other) / 2 for *_, one, other, _ in TABLE]))
    assert position.consistent.value == pytest.approx(4 / 6)  # all but the second and the third
    assert position.chosen_first.value == pytest.approx(3 / 5)
    assert position.chosen_second.value == pytest.approx(1 / 5)
    assert length is not None
    assert length.preferred.value == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert length.right.value == pytest.approx(2 / 4)
    assert length.where_right is not None
    assert length.where_right.value == pytest.approx(1 / 2)
    assert length.where_wrong is not None
    assert length.where_wrong.value == 0
    assert found.macro_accuracy == pytest.approx(1 / 4)
    assert found.calibration.brier == pytest.approx(np.mean([(row[4] - row[3]) ** 2 for row in TABLE]))
    assert found.intransitivity is None


def test_without_a_decided_pair_or_an_order_or_a_difference_in_length() -> None:
    assert measure_quality(judged([TABLE[3]]), None, 20, 0.95, 0) is None
    plain = judged([TABLE[2]])
    found = measure_quality(AssessedPairs(plain.examples, plain.probabilities, None), None, 20, 0.95, 0)
    assert found is not None
    assert (found.position, found.length, found.categories, found.agreement) == (None, None, (), {})


def test_only_missing_pairs_of_triples_are_asked() -> None:
    """Three answers in a cycle and three in an order; one pair of each is not in the data, and one is in reverse."""
    beats = {("a", "b"): 0.9, ("b", "c"): 0.8, ("c", "a"): 0.7, ("x", "y"): 0.9, ("y", "z"): 0.8, ("x", "z"): 0.6}
    rows = [
        (prompt, one, other, 1.0, beats[one, other], 0.5, 0.5, "a")
        for prompt, one, other in (("p", "a", "b"), ("p", "c", "a"), ("q", "x", "y"), ("q", "y", "z"))
    ]
    asked = []

    def ask(examples: object) -> np.ndarray:
        asked.extend((example.text, example.chosen, example.rejected) for example in examples)  # type: ignore[attr-defined]
        pairs = [(one, other) for _, one, other in asked]
        return np.array([beats.get(pair, 1 - beats.get(pair[::-1], 0.0)) for pair in pairs])

    found = measure_quality(judged(rows), ask, 20, 0.95, 0)
    assert sorted(asked) == [("p", "b", "c"), ("q", "x", "z")]
    assert found is not None
    assert found.intransitivity is not None
    assert (found.intransitivity.triples, found.intransitivity.share) == (2, 0.5)


def test_rewardbench_is_the_mean_of_its_sections() -> None:
    rng = np.random.default_rng(0)
    names = [*itertools.chain(*SECTIONS.values())]
    assert len(set(names)) == 23
    counts = dict.fromkeys(names, 10) | dict.fromkeys(CODE, 164) | {"math-prm": 447}
    shares = {name: float(rng.random()) for name in names}
    categories = [Category(name, counts[name], Estimate(shares[name], 0, 1, 9)) for name in names]
    scores = section_scores(categories)
    assert scores["Chat"] == pytest.approx(np.mean([shares[name] for name in SECTIONS["Chat"]]))
    assert scores["Reasoning"] == pytest.approx((shares["math-prm"] + np.mean([shares[name] for name in CODE])) / 2)
    assert scores["RewardBench"] == pytest.approx(np.mean([scores[name] for name in SECTIONS]))
    assert section_scores(categories[1:]) == {}
