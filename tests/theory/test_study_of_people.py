"""The study of people's preferences: its tables are means over the pairs and prompts that they say."""

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.append(str(SCRIPTS))  # last, and not for long: tests use some of its names for files of their own
try:
    from studies import bootstrap
    from studies.people_report import Measurements
finally:
    sys.path.remove(str(SCRIPTS))

JUDGED = [[[0.5, 0.9, 0.7], [0.1, 0.5, 0.2], [0.3, 0.8, 0.5]], [[0.5, 0.6, 0.4], [0.4, 0.5, 0.3], [0.6, 0.7, 0.5]]]


def found() -> Measurements:
    """Five pairs of three prompts, one of them a tie, and two candidates' prompts."""
    data = {
        "prompts": [0, 1, 1, 2, 0],
        "labels": [1.0, 0.667, 0.5, 1.0, 1.0],
        "longer": [1, -1, 1, 0, 1],
        "judged": JUDGED,
    }
    reward = [
        {"probabilities": [0.9, 0.4, 0.1, 0.5, 0.2], "choices": [0, 2]},
        {"probabilities": [0.6, 0.8, 0.9, 0.7, 0.7], "choices": [2, 2]},
    ]
    pair = [{"probabilities": [0.5, 0.5, 0.5, 0.5, 0.5], "choices": [1, 0]}]
    return Measurements(data, {"reward": reward, "pair": pair})


def test_accuracy_is_a_mean_over_decided_pairs() -> None:
    one = found()
    assert one.weights.tolist() == [2, 1, 1]
    mean, _, _ = bootstrap.interval(one.accuracy("reward"), weights=one.weights)
    assert mean == pytest.approx(np.mean([[1, 0, 0.5, 0], [1, 1, 1, 1]]))
    mean, low, high = bootstrap.interval(one.longer, weights=one.weights)
    assert mean == pytest.approx(np.mean([1, 0, 0.5, 1]))
    assert low < mean < high


def test_choices_are_compared_prompt_by_prompt() -> None:
    one = found()
    expected = [[[JUDGED[0][0][1], JUDGED[1][2][0]]], [[JUDGED[0][2][1], JUDGED[1][2][0]]]]
    np.testing.assert_allclose(one.between("reward", "pair"), expected)
    np.testing.assert_allclose(one.between("pair", "reward"), 1 - np.array(expected).transpose(1, 0, 2))
    others = [np.mean(JUDGED[0][1][:1] + JUDGED[0][1][2:]), np.mean(JUDGED[1][0][1:])]
    np.testing.assert_allclose(one.against_a_draw("pair"), [others])


def test_prompts_are_drawn_with_all_their_pairs() -> None:
    """The interval of a weighted mean, against a loop that draws prompts."""
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=12), rng.integers(1, 9, size=12).astype(float)
    _, low, high = bootstrap.interval(values, weights=weights)
    draws = []
    for _ in range(4000):
        drawn = rng.integers(12, size=12)
        draws.append(np.average(values[drawn], weights=weights[drawn]))
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.06)
