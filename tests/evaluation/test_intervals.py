import numpy as np
import pytest
from scipy import stats

from alignrun.errors import InputError
from alignrun.evaluation import intervals
from alignrun.evaluation.intervals import clustered_mean_interval, mean_interval, wilson_interval

SIMULATIONS = 400


def test_mean_interval_of_a_large_sample_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    half = 1.96 * values.std(ddof=1) / 20
    expected = (values.mean() - half, values.mean() + half)
    assert mean_interval(values.tolist(), 0.95) == pytest.approx(expected, abs=0.02)
    assert clustered_mean_interval(values, range(400), 0.95) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_of_one_value_give_the_interval_of_the_mean(seed: int) -> None:
    values = (np.random.default_rng(seed).random(40) < 0.9).astype(float)
    clustered = clustered_mean_interval(values, [f"prompt {i}" for i in range(40)], 0.9, seed)
    assert clustered == pytest.approx(mean_interval(values.tolist(), 0.9, seed), abs=0.01)
    low, high = clustered
    assert values.mean() - low > high - values.mean() + 0.02, "a share near 1 has the longer arm below"


def test_copies_of_every_value_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).random(30)
    once = clustered_mean_interval(values, range(30), 0.95)
    assert clustered_mean_interval(np.repeat(values, 6), np.repeat(np.arange(30), 6), 0.95) == pytest.approx(once)
    low, high = clustered_mean_interval(np.repeat(values, 6), range(180), 0.95)
    assert (high - low) / (once[1] - once[0]) == pytest.approx(1 / np.sqrt(6), rel=0.05)


def test_values_weigh_the_same_and_clusters_do_not() -> None:
    values, clusters = [1.0] * 20 + [0.0] * 180, [*range(20), *(20 + i // 9 for i in range(180))]
    low, high = clustered_mean_interval(values, clusters, 0.95)
    assert low < 0.1 < high < 0.25, "the mean of the clusters' means would be one half"


def test_order_of_the_values_and_names_of_the_clusters_play_no_part() -> None:
    rng = np.random.default_rng(1)
    values, clusters = rng.random(60), np.arange(60) // 3
    named = [("prompt", int(c)) for c in clusters]
    assert clustered_mean_interval(values, named, 0.9) == clustered_mean_interval(values, clusters, 0.9)
    interleaved = np.arange(60).reshape(20, 3).T.ravel()
    assert clustered_mean_interval(values[interleaved], clusters[interleaved], 0.9) == pytest.approx(
        clustered_mean_interval(values, clusters, 0.9)
    )


def test_repeatable_by_seed() -> None:
    values, clusters = np.random.default_rng(0).random(80), np.arange(80) // 2
    first, again, other = (clustered_mean_interval(values, clusters, 0.95, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("values", "clusters"), [([0.2, 0.4], [7, 7]), ([0.3] * 5, range(5)), ([0.1, 0.5, 0.1, 0.5], "aabb"), ([0.3], [0])]
)
def test_nothing_to_resample(values: list[float], clusters: list[int]) -> None:
    mean = float(np.mean(values))
    assert clustered_mean_interval(values, clusters, 0.95) == pytest.approx((mean, mean))
    low, high = clustered_mean_interval(values, clusters, 0.95, limits=(0, 1))
    count = len(set(clusters))
    unseen = 1 if count == 1 else 1 - 0.025 ** (1 / count)  # of clusters may be unlike those seen (Clopper and Pearson)
    assert (low, high) == pytest.approx((mean * (1 - unseen), mean + (1 - mean) * unseen))
    if count == len(values):
        assert mean_interval(values, 0.95, limits=(0, 1)) == pytest.approx((low, high))


def test_few_values_have_the_wider_of_two_intervals() -> None:
    values = np.array([0.1, 0.2, 0.4, 0.9, 0.95])
    student = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    low, high = mean_interval(values.tolist(), 0.95)
    assert low <= student.low + 1e-12
    assert high >= student.high - 1e-12
    assert mean_interval(values.tolist(), 0.95, limits=(0, 1)) == pytest.approx((max(low, 0), min(high, 1)))
    assert clustered_mean_interval(values, range(5), 0.95) == pytest.approx((low, high))
    many = np.random.default_rng(0).gamma(1, 1, 30)
    student, found = stats.ttest_1samp(many, 0).confidence_interval(0.95), mean_interval(many.tolist(), 0.95)
    assert found[0] > student.low, "from thirty on the bootstrap alone, which knows of skewness"


def test_intervals_are_never_nan() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 12))
        values, clusters = rng.integers(0, 2, n).astype(float), rng.integers(0, 4, n)
        low, high = clustered_mean_interval(values, clusters, 0.95, seed, limits=(0, 1))
        assert 0 <= low < high <= 1, (values, clusters)


@pytest.mark.parametrize(("values", "clusters"), [([0.1, 0.2], [1]), ([], []), ([[0.1]], [1])])
def test_unusable_values(values: list[float], clusters: list[int]) -> None:
    with pytest.raises(InputError, match="have one length"):
        clustered_mean_interval(values, clusters, 0.95)


def simulated_coverage(monkeypatch: pytest.MonkeyPatch, groups: int) -> tuple[float, float]:
    """How often the intervals over clusters and over single pairs contain the truth.

    Every prompt has one to nine pairs and a success rate of its own, drawn from Beta(2.4, 0.6) whatever their number.
    """
    monkeypatch.setattr(intervals, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    hits = np.zeros(2)
    for seed in range(SIMULATIONS):
        clusters = np.repeat(np.arange(groups), rng.integers(1, 10, groups))
        values = (rng.random(len(clusters)) < rng.beta(2.4, 0.6, groups)[clusters]).astype(float)
        for method, members in enumerate((clusters, np.arange(len(clusters)))):
            low, high = clustered_mean_interval(values, members, 0.95, seed)
            hits[method] += low <= 0.8 <= high
    clustered, naive = hits / SIMULATIONS
    return float(clustered), float(naive)


def test_coverage_is_nominal_over_clusters_and_too_low_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    clustered, naive = simulated_coverage(monkeypatch, groups=60)
    error = np.sqrt(0.95 * 0.05 / SIMULATIONS)
    assert abs(clustered - 0.95) < 3 * error
    assert naive < 0.95 - 8 * error


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize(("successes", "count"), [(0, 1), (0, 10), (3, 10), (10, 10), (499, 1000)])
def test_wilson_interval_is_that_of_scipy(successes: int, count: int, confidence: float) -> None:
    expected = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes / count, count, confidence) == pytest.approx((expected.low, expected.high))


def test_many_clusters_are_resampled_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 50)
    values = np.random.default_rng(0).random(3000)
    whole = clustered_mean_interval(values, range(3000), 0.95)
    monkeypatch.setattr(intervals, "BATCH_VALUES", 10_000)
    assert clustered_mean_interval(values, range(3000), 0.95) == pytest.approx(whole)
