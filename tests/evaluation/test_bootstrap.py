"""Intervals against those of `intervals`, against resampling by hand, and by how often they hold the truth."""

import numpy as np
import pytest

from alignrun.errors import InputError
from alignrun.evaluation import bootstrap
from alignrun.evaluation.bootstrap import Array, bootstrap_estimates
from alignrun.evaluation.intervals import clustered_mean_interval, mean_interval
from alignrun.evaluation.results import Estimate

pytestmark = pytest.mark.filterwarnings("error")


def ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def ratio(means: Array) -> Array:
    return means[:, :1] / means[:, 1:]


@pytest.mark.parametrize("seed", [0, 7])
def test_means_have_the_interval_that_each_would_have_alone(seed: int) -> None:
    values = np.random.default_rng(1).beta(3, 1, (40, 2, 3))
    estimates = bootstrap_estimates(values, 0.9, seed)
    assert len(estimates) == 6
    for estimate, column in zip(estimates, values.reshape(40, 6).T, strict=True):
        assert estimate.value == pytest.approx(column.mean())
        assert ends(estimate) == pytest.approx(mean_interval(column.tolist(), 0.9, seed), abs=1e-9)


def test_a_ratio_of_means_has_the_interval_of_clusters() -> None:
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(25), rng.integers(1, 9, 25))
    values = rng.random(len(clusters))
    sums = np.stack([np.bincount(clusters, values), np.bincount(clusters)], axis=1).astype(float)
    (estimate,) = bootstrap_estimates(sums, 0.95, 3, statistic=ratio)
    assert estimate.value == pytest.approx(values.mean())
    assert ends(estimate) == pytest.approx(clustered_mean_interval(values, clusters, 0.95, 3), abs=1e-9)


def test_percentiles_are_those_of_prompts_drawn_by_hand() -> None:
    values, rng = np.random.default_rng(3).random((30, 2)), np.random.default_rng(5)
    drawn = [values[rng.integers(0, 30, 30)].mean(0) for _ in range(4000)]
    expected = np.quantile([np.exp(first) * second for first, second in drawn], [0.1, 0.9])

    def product(means: Array) -> Array:
        return np.exp(means[:, :1]) * means[:, 1:]

    (estimate,) = bootstrap_estimates(values, 0.8, 5, statistic=product, draws=4000, method="percentile")
    assert ends(estimate) == pytest.approx(expected, abs=1e-9)


def test_all_numbers_see_the_same_draws() -> None:
    first = np.random.default_rng(0).random(50)
    both = np.stack([first, 1 - first, first + 1], axis=1)
    one, mirrored, shifted, total = bootstrap_estimates(
        both, 0.95, statistic=lambda means: np.column_stack([means, means[:, 0] + means[:, 1]])
    )
    assert ends(mirrored) == pytest.approx((1 - one.high, 1 - one.low))
    assert ends(shifted) == pytest.approx((1 + one.low, 1 + one.high))
    assert total.low == total.high == total.value == pytest.approx(1), "only the same prompts always add up to one"


def test_draws_come_in_batches_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values, sizes = np.random.default_rng(0).random((50, 4)), []

    def recorded(means: Array) -> Array:
        sizes.append(len(means))
        return means

    whole = bootstrap_estimates(values, 0.95, statistic=recorded, draws=300)
    assert max(sizes) == 300
    sizes.clear()
    monkeypatch.setattr(bootstrap, "BATCH_VALUES", 2000)
    batched = bootstrap_estimates(values, 0.95, statistic=recorded, draws=300)
    assert max(sizes) == 10
    np.testing.assert_allclose([*map(ends, batched)], [*map(ends, whole)], rtol=1e-12)


def test_repeatable_by_seed() -> None:
    values = np.random.default_rng(0).random((40, 2))
    assert bootstrap_estimates(values, 0.95, 1) == bootstrap_estimates(values, 0.95, 1)
    assert bootstrap_estimates(values, 0.95, 1) != bootstrap_estimates(values, 0.95, 2)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_nothing_to_resample(method: bootstrap.Method) -> None:
    single = np.array([[0.3, 0.9]])
    assert bootstrap_estimates(single, 0.95, method=method) == (Estimate(0.3, 0.3, 0.3, 1), Estimate(0.9, 0.9, 0.9, 1))
    bounded = bootstrap_estimates(single, 0.95, method=method, limits=(0, 1))
    assert bounded == (Estimate(0.3, 0, 1, 1), Estimate(0.9, 0, 1, 1)), "one prompt says nothing of others"
    values = np.full((30, 2), 0.1)
    values[:, 1] = np.random.default_rng(0).random(30)
    constant, other = bootstrap_estimates(values, 0.95, method=method)
    assert constant.low == constant.value == constant.high == pytest.approx(0.1)
    assert other.low < other.value < other.high
    constant, same = bootstrap_estimates(values, 0.95, method=method, limits=(0, 1))
    assert same == other
    # If more than 1 − 0.025^(1/30) of prompts had another value, thirty alike would be rarer than a tail.
    unseen = 1 - 0.025 ** (1 / 30)
    assert ends(constant) == pytest.approx((0.1 - 0.1 * unseen, 0.1 + 0.9 * unseen))


def test_an_interval_is_never_nan_and_holds_its_value() -> None:
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = rng.integers(0, 2, (int(rng.integers(2, 8)), 5)).astype(float)
        for estimate in bootstrap_estimates(values, 0.5, seed, draws=50, statistic=lambda means: means.round()):
            assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("values", [[], 0.5, [[0.1, np.nan]], [[np.inf]]])
def test_unusable_values(values: object) -> None:
    with pytest.raises(InputError, match="a finite value for at least one prompt"):
        bootstrap_estimates(np.array(values, dtype=float), 0.95)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_coverage_of_a_skewed_statistic_is_nominal(method: bootstrap.Method) -> None:
    rng, simulations = np.random.default_rng(0), 400
    hits = np.zeros(2)
    for seed in range(simulations):
        values = rng.gamma([2, 3], 1, (60, 2))
        mean, quotient = bootstrap_estimates(
            values, 0.9, seed, statistic=lambda m: np.column_stack([m[:, 0], ratio(m)]), draws=500, method=method
        )
        hits += mean.low <= 2 <= mean.high, quotient.low <= 2 / 3 <= quotient.high
    assert np.abs(hits / simulations - 0.9).max() < 3 * np.sqrt(0.9 * 0.1 / simulations)
