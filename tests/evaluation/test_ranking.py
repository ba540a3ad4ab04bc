"""A sweep's ranking: hand-computed settings, paths of a game whose win rates are known, and the interval over seeds
against SciPy and by simulation."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from alignrun import games
from alignrun.evaluation.ranking import (
    Spread,
    kl_path,
    matched_kl,
    over_seeds,
    pooled,
    rank_settings,
    rests_on_one_evaluation,
    win_rate_at,
)
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
    result = rank_settings("runs/sweep", runs, "alignrun -m", confidence)
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
    assert result.ranked_by == "win rate at KL 2 nats, interpolated in √KL"
    assert result.settings[1].metrics == {"win_rate": exact(0.9)}
    assert [run.name for run in result.runs] == ["1", "0"]
    assert (result.directory, result.command, result.confidence) == ("runs/sweep", "alignrun -m", 0.95)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.25, 0.55), (1.0, 0.6), (1.44, 0.6 + 0.2 * 0.2 / 0.6), (2.56, 0.8), (2.89, 0.3 + 0.5 * 0.2 / 0.5), (4.0, 0.8)],
)
def test_the_first_crossing_counts(kl: float, expected: float) -> None:
    """The path turns back to KL 0.5, so that it passes each KL up to 2.56 three times; √KL: 1, 1.6, 0.7, 1.5, 2."""
    there_and_back = run("0", points=((1, 1.0, 0.6), (2, 2.56, 0.8), (3, 0.49, 0.9), (4, 2.25, 0.3), (5, 4.0, 0.8)))
    assert win_rate_at(kl_path(there_and_back), kl) == pytest.approx(expected)


def test_a_kl_that_was_never_reached_is_no_number() -> None:
    with pytest.raises(ValueError, match="reaches a KL of 2"):
        win_rate_at([(0.0, 0.5), (1.0, 0.6)], 2.0)


def test_a_run_that_turned_back_is_matched_at_its_furthest() -> None:
    back = run("0", "a", points=((1, 3.0, 0.8), (2, 1.0, 0.9)))
    far = run("1", "b", points=((1, 12.0, 0.6),))
    result = ranked(back, far)
    assert result.matched_kl == 3.0
    assert [setting.matched for setting in result.settings] == [exact(0.8), exact(0.55)]
    assert [setting.single for setting in result.settings] == [1, 1]


def test_what_rests_on_one_evaluation_is_marked() -> None:
    """At the matched KL, 2, the first run has one evaluation alone, the second ends there, the third has two around."""
    runs = [
        run("0", "a", points=((10, 8.0, 0.9),)),
        run("1", "b", points=FIRST),
        run("2", "c", points=((10, 1.0, 0.6), (20, 3.0, 0.8))),
    ]
    result = ranked(*runs)
    assert {setting.setting: setting.single for setting in result.settings} == {"a": 1, "b": 1, "c": 0}
    assert "Based on a single evaluation" in " ".join(result.notes)
    assert rests_on_one_evaluation(kl_path(runs[2]), 0.5)
    assert not rests_on_one_evaluation(kl_path(runs[2]), 1.5)


def on_cyc(steps: list[int], way: float) -> list[tuple[int, float, float]]:
    """(step, KL, win rate), exact, along π ∝ μ^(1−t)·π*_0.1^t, t = way·step/100: from μ towards the equilibrium."""
    game = games.CYC
    goal = games.equilibrium(game, 0.1)
    points = []
    for step in steps:
        policy = games.geometric_mixture(game.reference, goal, way * step / 100)
        measured = games.kl(policy, game.reference), games.win_rate(game, policy, game.reference)
        points.append((step, *map(float, measured)))
    return points


@pytest.mark.parametrize(("evaluations", "error"), [(1, 0.23), (2, 0.1), (5, 0.03)])
@pytest.mark.parametrize("way", [0.2, 0.4, 0.7])
def test_the_margin_of_a_run_that_went_further_is_kept(evaluations: int, error: float, way: float) -> None:
    """Two runs on one path have one win rate at each KL. Linear in KL, the further one lost up to 84% of its margin."""
    near = run("0", "near", points=tuple(on_cyc([100], way)))
    far = run("1", "far", points=tuple(on_cyc([100 * k // evaluations for k in range(1, evaluations + 1)], 1.0)))
    result = ranked(near, far)
    margins = {setting.setting: setting.matched.value - 0.5 for setting in result.settings}
    assert margins["near"] == pytest.approx(near.trajectory[0].win_rate - 0.5)
    assert margins["far"] == pytest.approx(margins["near"], rel=error)


def test_a_better_path_wins_though_it_went_much_further() -> None:
    """On CYC the best response BR_0.1(μ) gains 0.0574 for 0.23 nats, and BR_τ(μ) on the way to it 0.0215 for 0.0269,
    where the way to the equilibrium gains 0.0127; linear in KL it would be read as 0.0066 there, and lose."""
    game = games.CYC
    response = games.best_response(game, game.reference, 0.1)
    kl, rate = float(games.kl(response, game.reference)), float(games.win_rate(game, response, game.reference))
    better, worse = (
        run("0", "response", points=((10, kl, rate),)),
        run("1", "mixture", points=tuple(on_cyc([100], 0.5))),
    )
    result = ranked(better, worse)
    assert result.matched_kl == worse.trajectory[0].kl
    assert order(result) == ["response", "mixture"]
    assert result.settings[0].matched.value - 0.5 == pytest.approx(0.0215, rel=0.1)


def test_seeds_are_averaged_with_students_interval() -> None:
    runs = [
        run("0", "a", 1, FIRST, win_rate=0.8, win_rate_low=0.7, win_rate_high=0.9, length=10.0),
        run("1", "b", 1, ((10, 2.0, 0.6),), win_rate=0.9, win_rate_low=0.8, win_rate_high=0.95, length=9.0),
        run("2", "a", 2, ((10, 2.0, 0.6),), win_rate=0.6, win_rate_low=0.5, win_rate_high=0.7, length=14.0),
        run("3", "a", 3, ((10, 2.0, 0.7),), win_rate=0.7, win_rate_low=0.5, win_rate_high=0.7, length=12.0),
    ]
    result = ranked(*runs, confidence=0.9)
    one, two = result.settings
    assert (one.setting, one.runs, two.setting, two.runs) == ("a", ("0", "2", "3"), "b", ("1",))
    low, high = stats.t.interval(0.9, 2, loc=0.7, scale=stats.sem([0.8, 0.6, 0.7]))
    assert one.metrics["win_rate"] == Estimate(*map(pytest.approx, (0.7, low, high)))
    low, high = stats.t.interval(0.9, 2, loc=12.0, scale=stats.sem([10.0, 14.0, 12.0]))
    assert one.metrics["length"] == Estimate(12.0, pytest.approx(low), pytest.approx(high))
    assert two.metrics == {"win_rate": Estimate(0.9, 0.8, 0.95), "length": exact(9.0)}, "one seed: over its prompts"
    assert one.matched.value == pytest.approx(0.7)
    assert two.matched == exact(0.6)
    assert not result.settled
    assert not any("seeds" in note for note in result.notes)


def two_seeds(*settings: tuple[float, float]) -> SweepResult:
    return ranked(
        *(
            run(f"{name}{seed}", name, seed, win_rate=rate, kl=rate)
            for name, pair in zip("abc", settings, strict=False)
            for seed, rate in enumerate(pair)
        )
    )


def test_two_seeds_take_their_spread_from_all_settings() -> None:
    """Alone, Student's t of two win rates 0.04 apart is 0.25 to each side at 95%; of 0.2 apart it is all of [0, 1]."""
    result = two_seeds((0.62, 0.58), (0.55, 0.53), (0.5, 0.56))
    deviation = math.sqrt((0.04**2 + 0.02**2 + 0.06**2) / 2 / 3)
    half = stats.t.ppf(0.975, 3) * deviation / math.sqrt(2)
    for setting, mean in zip(result.settings, (0.6, 0.54, 0.53), strict=True):
        assert setting.metrics["win_rate"] == Estimate(*map(pytest.approx, (mean, mean - half, mean + half)))
        assert setting.metrics["kl"] == exact(mean), "a KL has no scale that settings share"
    assert not result.settled
    assert "Two seeds have no interval of their own" in " ".join(result.notes)


def test_two_seeds_of_one_setting_have_no_interval_and_settle_nothing() -> None:
    result = two_seeds((0.9, 0.5))
    assert result.settings[0].metrics["win_rate"] == exact(0.7)
    assert "Two seeds of one setting have no interval" in " ".join(result.notes)
    assert not result.settled


def test_a_best_setting_is_settled_where_intervals_part() -> None:
    assert two_seeds((0.81, 0.80), (0.6, 0.61)).settled
    assert not two_seeds((0.65, 0.60), (0.6, 0.61)).settled
    assert not ranked(run("0", "a", 1, win_rate=0.9), run("1", "b", 1, win_rate=0.1)).settled, "one seed each"
    seeds = range(3)
    gaps = [
        run(f"{name}{seed}", name, seed, duality_gap=gap + seed / 1e3)
        for name, gap in (("a", 0.1), ("b", 0.2))
        for seed in seeds
    ]
    assert ranked(*gaps).settled, "the smallest is best"


def test_settings_with_spaces_are_distinguished_by_their_overrides() -> None:
    """Joined, both are `x=1 y=2`."""
    runs = [
        RunResult(str(n), "x=1 y=2", 1, 0, {}, (), None, own) for n, own in enumerate((("x=1 y=2",), ("x=1", "y=2")))
    ]
    result = ranked(*runs)
    assert [setting.overrides for setting in result.settings] == [("x=1 y=2",), ("x=1", "y=2")]


@pytest.mark.parametrize("count", [3, 10])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_over_seeds_is_scipys(count: int, confidence: float) -> None:
    values = np.random.default_rng(count).normal(3.0, 2.0, count).tolist()
    estimate = over_seeds(values, confidence)
    expected = stats.t.interval(confidence, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    assert estimate.value == pytest.approx(np.mean(values))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_interval_over_seeds_covers_as_often_as_it_says(count: int) -> None:
    """With two seeds a setting, of which there are three."""
    draws = np.random.default_rng(0).normal(0.6, 0.05, (2000, 3, count))
    estimates = [over_seeds(groups[0].tolist(), 0.9, pooled(groups.tolist())) for groups in draws]
    covered = np.mean([estimate.low <= 0.6 <= estimate.high for estimate in estimates])
    assert covered == pytest.approx(0.9, abs=0.02), "three standard errors"


def test_few_values_have_no_interval() -> None:
    assert over_seeds([0.7], 0.95, Spread(0.1, 9)) == exact(0.7)
    assert over_seeds([0.6, 0.8], 0.95) == over_seeds([0.6, 0.8], 0.95, pooled([[0.6, 0.8]])) == exact(0.7)


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


@pytest.mark.parametrize("distance", [0.0, -0.01, 1e-7])
def test_a_run_at_the_reference_is_left_out_and_the_others_compared(distance: float) -> None:
    """However much its noise seems to win, and whatever its KL is estimated at."""
    still = run("0", "a", points=((1, distance, 0.95),), win_rate=0.95)
    result = ranked(still, run("1", "b", points=FIRST, win_rate=0.8), run("2", "c", points=SECOND, win_rate=0.9))
    assert order(result) == ["b", "c", "a"]
    assert result.ranked_by == "win rate at KL 2 nats, interpolated in √KL"
    assert result.matched_kl == 2.0
    assert [setting.matched for setting in result.settings] == [exact(0.8), exact(0.7), None]
    assert "Not compared at the matched KL, since their estimated KL is 0 or less: 0." in result.notes


def test_where_all_runs_stayed_at_the_reference_no_kl_is_matched() -> None:
    result = ranked(
        run("0", "a", points=((1, -0.1, 0.5),), win_rate=0.5), run("1", "b", points=((1, 0.0, 0.5),), win_rate=0.6)
    )
    assert (order(result), result.matched_kl) == (["b", "a"], None)
    assert result.ranked_by == "final win rate: no KL can be matched, every run has stayed at the reference"
    assert not any(setting.matched for setting in result.settings)


def test_a_negative_kl_on_the_way_is_no_point_of_the_path() -> None:
    """A policy at the reference wins half of the time: 0.9 is noise, from which nothing is interpolated."""
    noisy = run("0", points=((1, -0.01, 0.9), (2, 4.0, 0.7)))
    assert kl_path(noisy) == [(0.0, 0.5), (4.0, 0.7)]
    assert win_rate_at(kl_path(noisy), 1.0) == pytest.approx(0.6)


def test_what_is_not_finite_is_left_out() -> None:
    nan, inf = math.nan, math.inf
    odd = run("0", "a", 1, ((1, nan, 0.9), (2, 1.0, nan), (3, inf, 0.7), (4, 3.0, 0.8)), win_rate=nan, loss=inf, kl=1.0)
    result = ranked(odd, run("1", "a", 2, SECOND, win_rate=0.9, kl=3.0), run("2", "b", 1, ((1, nan, nan),), kl=nan))
    assert matched_kl([odd]) == 3.0
    assert result.matched_kl == 3.0
    assert result.settings[0].metrics.keys() == {"win_rate", "kl"}
    assert result.settings[0].metrics["win_rate"] == exact(0.9)
    at_three = 0.7 + 0.2 * (math.sqrt(3) - math.sqrt(2)) / (2 - math.sqrt(2))
    assert result.settings[0].matched.value == pytest.approx((0.8 + at_three) / 2)
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
    assert setting.metrics["kl"] == exact(-0.1)
    (setting,) = ranked(*runs, run("1", "a", 2, kl=-0.3, margin=-3.0), run("2", "a", 3, kl=-0.1, margin=0.0)).settings
    assert setting.metrics["kl"].value == setting.metrics["kl"].low == pytest.approx(-0.1), "below 0 only as estimated"
    assert setting.metrics["margin"].low < -3.0
