"""A sweep's ranking: hand-computed settings, and the interval over seeds against SciPy and by simulation."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from alignrun.evaluation.ranking import matched_kl, over_seeds, path, rank, win_rate_at
from alignrun.evaluation.results import Estimate, Point, RunResult, SweepResult

FIRST, SECOND = ((10, 1.0, 0.6), (20, 2.0, 0.8)), ((10, 2.0, 0.7), (20, 4.0, 0.9))


def run(
    name: str,
    setting: str = "a=1",
    seed: int | None = None,
    points: tuple[tuple[int, float, float], ...] = (),
    exit_code: int = 0,
    **summary: float,
) -> RunResult:
    return RunResult(name, setting, seed, exit_code, summary, tuple(Point(*point) for point in points))


def ranked(*runs: RunResult, confidence: float = 0.95) -> SweepResult:
    result = rank("runs/sweep", runs, "alignrun -m", confidence)
    json.dumps(asdict(result)["settings"], allow_nan=False)
    assert {name for setting in result.settings for name in setting.runs} == {run.name for run in runs}
    return result


def order(result: SweepResult) -> list[str]:
    return [setting.setting for setting in result.settings]


def exact(value: float) -> Estimate:
    return Estimate(*[pytest.approx(value)] * 3)


def test_win_rates_are_compared_at_the_kl_that_all_have_reached() -> None:
    """The run that ends higher has only gone further: at KL 2 it is 0.7 against 0.8."""
    further, better = run("0", "tau=0.01", None, SECOND, win_rate=0.9), run("1", "tau=0.1", None, FIRST, win_rate=0.8)
    result = ranked(further, better)
    assert result.matched_kl == 2.0
    assert order(result) == ["tau=0.1", "tau=0.01"]
    assert [setting.matched for setting in result.settings] == [exact(0.8), exact(0.7)]
    assert result.ranked_by == "win rate at KL 2 nats, interpolated"
    assert result.settings[1].metrics == {"win_rate": exact(0.9)}
    assert [run.name for run in result.runs] == ["1", "0"]
    assert (result.directory, result.command, result.confidence) == ("runs/sweep", "alignrun -m", 0.95)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.25, 0.525), (1.0, 0.6), (1.5, 0.7), (2.0, 0.8), (3.0, 0.3 + 0.5 * 0.5), (4.0, 0.8)],
)
def test_the_first_crossing_counts(kl: float, expected: float) -> None:
    """The path turns back to KL 0.5, so that it passes each KL up to 2 three times."""
    there_and_back = run("0", points=((1, 1.0, 0.6), (2, 2.0, 0.8), (3, 0.5, 0.9), (4, 2.0, 0.3), (5, 4.0, 0.8)))
    assert win_rate_at(path(there_and_back), kl) == pytest.approx(expected)


def test_a_kl_that_was_never_reached_is_no_number() -> None:
    with pytest.raises(ValueError, match="reaches a KL of 2"):
        win_rate_at([(0.0, 0.5), (1.0, 0.6)], 2.0)


def test_a_run_that_turned_back_is_matched_at_its_furthest() -> None:
    back = run("0", "a", points=((1, 3.0, 0.8), (2, 1.0, 0.9)))
    far = run("1", "b", points=((1, 6.0, 0.6),))
    result = ranked(back, far)
    assert result.matched_kl == 3.0
    assert [setting.matched for setting in result.settings] == [exact(0.8), exact(0.55)]


def test_seeds_are_averaged_with_students_interval() -> None:
    runs = [
        run("0", "a", 1, FIRST, win_rate=0.8, win_rate_low=0.7, win_rate_high=0.9, length=10.0),
        run("1", "b", 1, ((10, 2.0, 0.6),), win_rate=0.9, win_rate_low=0.8, win_rate_high=0.95, length=9.0),
        run("2", "a", 2, ((10, 2.0, 0.6),), win_rate=0.6, win_rate_low=0.5, win_rate_high=0.7, length=14.0),
    ]
    result = ranked(*runs, confidence=0.9)
    one, two = result.settings
    assert (one.setting, one.runs, two.setting, two.runs) == ("a", ("0", "2"), "b", ("1",))
    half = stats.t.ppf(0.95, 1) * math.sqrt(0.02) / math.sqrt(2)
    assert one.metrics["win_rate"] == Estimate(pytest.approx(0.7), pytest.approx(max(0.7 - half, 0)), 1.0)
    low, high = stats.t.interval(0.9, 1, loc=12.0, scale=stats.sem([10.0, 14.0]))
    assert one.metrics["length"] == Estimate(12.0, pytest.approx(low), pytest.approx(high))
    assert two.metrics == {"win_rate": Estimate(0.9, 0.8, 0.95), "length": exact(9.0)}, "one seed: over its prompts"
    assert one.matched == Estimate(pytest.approx(0.7), pytest.approx(max(0.7 - half, 0)), 1.0)
    assert two.matched == exact(0.6)


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_over_seeds_is_scipys(count: int, confidence: float) -> None:
    values = np.random.default_rng(count).normal(3.0, 2.0, count).tolist()
    estimate = over_seeds(values, confidence)
    expected = stats.t.interval(confidence, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    assert estimate.value == pytest.approx(np.mean(values))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_interval_over_seeds_covers_as_often_as_it_says(count: int) -> None:
    draws = np.random.default_rng(0).normal(0.6, 0.05, (2000, count))
    covered = np.mean([estimate.low <= 0.6 <= estimate.high for estimate in (over_seeds(row, 0.9) for row in draws)])
    assert covered == pytest.approx(0.9, abs=0.02), "three standard errors"


def test_a_seed_that_ran_twice_counts_once() -> None:
    runs = [run("0", "a", 1, win_rate=0.7), run("1", "a", 1, win_rate=0.7), run("2", "a", 1, win_rate=0.9)]
    (setting,) = ranked(*runs).settings
    assert setting.metrics == {"win_rate": exact(0.7)}
    assert setting.runs == ("0", "1", "2")
    failed_first = [run("0", "a", 1, exit_code=1), run("1", "a", 1, win_rate=0.7), run("2", "a", 2, win_rate=0.8)]
    (setting,) = ranked(*failed_first).settings
    assert setting.metrics["win_rate"].value == pytest.approx(0.75)


def test_failed_runs_count_in_nothing_and_come_last() -> None:
    result = ranked(
        run("0", "a", 1, exit_code=1, points=((1, 0.1, 0.9),), win_rate=0.99),
        run("1", "b", 1, FIRST, exit_code=143),
        run("2", "b", 2, SECOND, win_rate=0.9),
        run("3", "c", 1, FIRST, win_rate=0.8),
    )
    assert result.matched_kl == 2.0
    assert order(result) == ["c", "b", "a"]
    assert [setting.failed for setting in result.settings] == [0, 1, 1]
    assert result.settings[1].metrics == {"win_rate": exact(0.9)}
    assert (result.settings[2].metrics, result.settings[2].matched) == ({}, None)
    assert [run.name for run in result.runs] == ["3", "2", "1", "0"]


def test_nothing_finished() -> None:
    result = ranked(run("0", "a", exit_code=1), run("1", "b", exit_code=2))
    assert (order(result), result.matched_kl) == (["a", "b"], None)
    assert "nothing can be compared" in result.ranked_by
    assert ranked().settings == ()
    assert order(ranked(run("0", "a", exit_code=1), run("1", "b"))) == ["b", "a"], (
        "finished, though nothing was measured"
    )


def test_a_run_at_the_reference_leaves_no_kl_to_compare_at() -> None:
    for distance in (0.0, -0.01, 1e-7):
        still = run("0", "a", points=((1, distance, 0.5),), win_rate=0.5)
        result = ranked(still, run("1", "b", points=FIRST, win_rate=0.8), run("2", "c", points=FIRST, win_rate=0.9))
        assert order(result) == ["c", "b", "a"]
        assert result.ranked_by == "final win rate: no KL can be matched, a run has stayed at the reference"
        assert result.matched_kl == pytest.approx(max(distance, 0.0))
        assert not any(setting.matched for setting in result.settings)


def test_what_is_not_finite_is_left_out() -> None:
    nan, inf = math.nan, math.inf
    odd = run("0", "a", 1, ((1, nan, 0.9), (2, 1.0, nan), (3, inf, 0.7), (4, 3.0, 0.8)), win_rate=nan, loss=inf, kl=1.0)
    result = ranked(odd, run("1", "a", 2, SECOND, win_rate=0.9, kl=3.0), run("2", "b", 1, ((1, nan, nan),), kl=nan))
    assert matched_kl([odd]) == 3.0
    assert result.matched_kl == 3.0
    assert result.settings[0].metrics.keys() == {"win_rate", "kl"}
    assert result.settings[0].metrics["win_rate"] == exact(0.9)
    assert result.settings[0].matched.value == pytest.approx((0.8 + 0.8) / 2)
    assert (result.settings[1].metrics, result.settings[1].matched) == ({}, None)


def test_games_are_ranked_by_their_gap() -> None:
    result = ranked(
        run("0", "a", points=FIRST, win_rate=0.9, duality_gap=0.2, exploitability=0.1),
        run("1", "b", points=FIRST, win_rate=0.8, duality_gap=0.1, exploitability=0.3),
        run("2", "c", points=FIRST, win_rate=0.7, duality_gap=0.1, exploitability=0.2),
        run("3", "d", points=FIRST, win_rate=0.95, exploitability=0.01),
    )
    assert order(result) == ["c", "b", "a", "d"]
    assert result.ranked_by.startswith("duality gap, each at its own kl_tau, smallest first")
    assert result.settings[0].matched == exact(0.8)
    gapless = ranked(run("0", "a", exploitability=0.2, win_rate=0.9), run("1", "b", exploitability=0.1, win_rate=0.6))
    assert (order(gapless), gapless.ranked_by) == (["b", "a"], "exploitability, smallest first")


def test_best_responses_are_ranked_by_what_they_gain() -> None:
    gain = "opponent/gain"
    result = ranked(
        run("0", "a", points=FIRST, duality_gap=0.1, **{gain: 0.1}), run("1", "b", duality_gap=0.5, **{gain: 0.3})
    )
    assert order(result) == ["b", "a"]


def test_feedback_models_are_ranked_by_accuracy_or_loss() -> None:
    better = run("1", "b", accuracy=0.7, accuracy_low=0.6, accuracy_high=0.8, loss=0.9)
    result = ranked(run("0", "a", accuracy=0.6, loss=0.1), better)
    assert (order(result), result.ranked_by) == (["b", "a"], "held-out accuracy")
    assert result.settings[0].metrics == {"accuracy": Estimate(0.7, 0.6, 0.8), "loss": exact(0.9)}
    assert (result.matched_kl, result.settings[0].matched) == (None, None)
    by_loss = ranked(run("0", "a", loss=0.2), run("1", "b", loss=0.1))
    assert (order(by_loss), by_loss.ranked_by) == (["b", "a"], "held-out loss, smallest first")


def test_policies_come_before_what_nothing_judged() -> None:
    result = ranked(
        run("0", "a", accuracy=0.99), run("1", "b", accuracy=0.6), run("2", "c", points=FIRST, win_rate=0.6)
    )
    assert order(result) == ["c", "a", "b"]


def test_equal_settings_stay_in_the_order_in_which_they_were_run() -> None:
    names = ["d", "b", "a", "c"]
    assert order(ranked(*(run(name, name, points=FIRST, win_rate=0.8) for name in names))) == names


def test_a_lone_bound_is_a_metric_and_intervals_end_where_values_do() -> None:
    runs = [run("0", "a", 1, kl=0.1, intransitive=0.0, intransitive_high=0.2, margin=1.0)]
    (setting,) = ranked(*runs).settings
    assert setting.metrics.keys() == {"kl", "intransitive", "intransitive_high", "margin"}
    (setting,) = ranked(*runs, run("1", "a", 2, kl=-0.3, margin=-3.0)).settings
    assert setting.metrics["kl"].value == setting.metrics["kl"].low == pytest.approx(-0.1), "below 0 only as estimated"
    assert setting.metrics["margin"].low < -3.0
