"""The settings of a sweep from best to worst: averaged over seeds, policies compared at equal KL from the reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from alignrun.evaluation.results import Estimate, RunResult, SettingResult, SweepResult

NO_DISTANCE = 1e-6
"""Nats: a policy whose estimated KL is smaller, or negative, cannot be distinguished from the reference."""
OWN_SPREAD = 3
"""The number of seeds from which a setting has its own interval; with two, Student's t gives almost [0, 1]."""
POOLED_FREEDOM = 2
"""The degrees of freedom from which the pooled spread replaces that of two seeds."""
SHARE, DISTANCE = (0.0, 1.0), (0.0, math.inf)
LIMITS = {
    "win_rate": SHARE,
    "accuracy": SHARE,
    "kl": DISTANCE,
    "exploitability": DISTANCE,
    "duality_gap": DISTANCE,
}
"""The ranges of the true values of metrics; intervals are cut off there."""
MATCHED = "matched"
ONE_EVALUATION = "†"
"""Marks a win rate at the matched KL that rests on one evaluation of a run."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion that orders settings."""

    metric: str
    """A final metric, or `MATCHED`."""
    sign: int
    """1 if larger is better, −1 if smaller is."""
    words: str


CRITERIA = (
    # A best response is judged by its gain, however far it is from an equilibrium.
    Criterion("opponent/regularised_gain", 1, "regularised gain against the opponent, largest first"),
    Criterion("opponent/gain", 1, "gain against the opponent, largest first"),
    Criterion("duality_gap", -1, "duality gap, each at its own kl_tau, smallest first; then exploitability"),
    Criterion("exploitability", -1, "exploitability, smallest first"),
    Criterion(MATCHED, 1, "win rate at KL {kl:.3g} nats, interpolated in √KL"),
    Criterion("win_rate", 1, "final win rate"),
    Criterion("accuracy", 1, "held-out accuracy"),
    Criterion("loss", -1, "held-out loss, smallest first"),
)
"""The first criterion that any setting has orders them; the others break ties and order the settings without it."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread between seeds of one setting, pooled over all settings of a sweep."""

    deviation: float
    """√(Σ_g Σ_i (x_gi − x̄_g)² / `freedom`), the pooled standard deviation within settings g."""
    freedom: int
    """Degrees of freedom, Σ_g (n_g − 1)."""


def rank_settings(directory: str, runs: Sequence[RunResult], command: str, confidence: float = 0.95) -> SweepResult:
    """Aggregate each setting's runs over seeds and order the settings; those without a finished run come last.

    A policy wins more the further it moves from the reference, so win rates are compared at the KL(π‖μ) that all
    finished runs have reached. A run whose estimated KL never exceeds 0 has no such point and is left out.
    """
    kl = matched_kl(runs)
    groups: dict[tuple[str, ...], list[RunResult]] = {}
    for run in runs:
        groups.setdefault(run.overrides or (run.setting,), []).append(run)
    counted = {overrides: _counted(group) for overrides, group in groups.items()}
    spreads = {name: pooled(values) for name, values in _rates(list(counted.values()), kl).items()}
    settings = [_aggregate(group, counted[key], kl, spreads, confidence) for key, group in groups.items()]
    settings.sort(key=_standing)
    places = {name: place for place, setting in enumerate(settings) for name in setting.runs}
    criterion = _first_used(settings)
    seeds = [len(seeded) for seeded in counted.values() if seeded]
    return SweepResult(
        directory=directory,
        settings=tuple(settings),
        runs=tuple(sorted(runs, key=lambda run: (run.exit_code != 0, places[run.name]))),
        matched_kl=kl,
        ranked_by=_in_words(criterion, kl, runs),
        command=command,
        confidence=confidence,
        settled=min(seeds, default=0) > 1 and criterion is not None and _settled(settings, criterion),
        notes=tuple(_notes(settings, runs, kl, seeds, spreads)),
    )


def matched_kl(runs: Sequence[RunResult]) -> float | None:
    """The largest KL reached by every finished run that has left the reference; None if there is none."""
    paths = [kl_path(run) for run in runs if not run.exit_code]
    return min((max(kl for kl, _ in points) for points in paths if len(points) > 1), default=None)


def kl_path(run: RunResult) -> list[tuple[float, float]]:
    """(KL, win rate) along a run: from the reference, at 0 and ½, through its evaluations.

    An estimated KL of 0 or less means that the policy is still at the reference, whose win rate is exactly ½; a win
    rate measured there is noise and not a point of the path.
    """
    points = [(point.kl, point.win_rate) for point in run.trajectory if math.isfinite(point.win_rate)]
    return [(0.0, 0.5), *(point for point in points if NO_DISTANCE <= point[0] < math.inf)]


def win_rate_at(points: Sequence[tuple[float, float]], kl: float) -> float:
    """The win rate where a path first reaches a positive KL, linear in √KL between its points; it must reach it.

    Near the reference KL(π_θ‖μ) ≈ ½ Δθᵀ F Δθ is quadratic in the step Δθ, and the win rate − ½ linear in it, so that
    it grows like √KL (arXiv 2210.10760). Linear in KL, a run with few evaluations would lose most of its margin.
    """
    (before, rate), (after, next_rate) = _crossing(points, kl)
    share = (math.sqrt(kl) - math.sqrt(before)) / (math.sqrt(after) - math.sqrt(before))
    return rate + share * (next_rate - rate)


def rests_on_one_evaluation(points: Sequence[tuple[float, float]], kl: float) -> bool:
    """Whether the win rate at a KL rests on a single evaluation: at it, or interpolated from the reference to it."""
    (before, _), (after, _) = _crossing(points, kl)
    return before == 0.0 or after == kl


def _crossing(points: Sequence[tuple[float, float]], kl: float) -> tuple[tuple[float, float], tuple[float, float]]:
    for start, end in pairwise(points):
        if end[0] >= kl:
            return start, end
    raise ValueError(f"no point of the path reaches a KL of {kl}")


def pooled(groups: Sequence[Sequence[float]]) -> Spread:
    """The spread within groups of values; 0 with 0 degrees of freedom if no group has two values."""
    squares = sum(float(np.sum((np.asarray(values) - np.mean(values)) ** 2)) for values in groups if values)
    freedom = sum(len(values) - 1 for values in groups if values)
    return Spread(math.sqrt(squares / freedom) if freedom else 0.0, freedom)


def over_seeds(values: Sequence[float], confidence: float, spread: Spread | None = None) -> Estimate:
    """The mean over seeds with Student's t interval, which is exact for normal values.

    A bootstrap interval of a handful of values is far too narrow. Two values estimate their own spread poorly, so they
    use the one pooled over all settings if it has `POOLED_FREEDOM` degrees of freedom; this is exact if the spread is
    the same in all. Without it, and for a single value, there is no interval: both ends equal the mean.
    """
    mean, count = float(np.mean(values)), len(values)
    own = Spread(float(np.std(values, ddof=1)), count - 1) if count >= OWN_SPREAD else None
    used = own or (spread if count > 1 else None)
    if used is None or used.freedom < POOLED_FREEDOM:
        return Estimate(mean, mean, mean)
    from scipy import stats  # expensive to import, and needed only at the end of a sweep

    half = float(stats.t.ppf((1 + confidence) / 2, used.freedom)) * used.deviation / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half)


def _counted(runs: Sequence[RunResult]) -> list[RunResult]:
    """The finished runs of a setting, one per seed: duplicates of a seed would make the spread look smaller."""
    by_seed: dict[int | None, RunResult] = {}
    for run in runs:
        if not run.exit_code:
            by_seed.setdefault(run.seed, run)
    return list(by_seed.values())


def _rates(groups: Sequence[Sequence[RunResult]], kl: float | None) -> dict[str, list[list[float]]]:
    """Metrics between 0 and 1, by name and setting: their spread between seeds is similar in all settings.

    That does not hold for a quantity without a fixed scale, such as a KL or a loss; two seeds have no interval of
    those.
    """
    found = {
        name: [values for runs in groups if len(values := _values(name, runs)) > 1]
        for name, limits in LIMITS.items()
        if limits == SHARE
    }
    return found | {MATCHED: [list(_matched(runs, kl)) for runs in groups]}


def _values(name: str, runs: Sequence[RunResult]) -> list[float]:
    return [value for run in runs if math.isfinite(value := run.summary.get(name, math.nan))]


def _matched(runs: Sequence[RunResult], kl: float | None) -> list[float]:
    paths = [points for run in runs if len(points := kl_path(run)) > 1]
    return [] if kl is None else [win_rate_at(points, kl) for points in paths]


def _aggregate(
    runs: Sequence[RunResult],
    counted: Sequence[RunResult],
    kl: float | None,
    spreads: Mapping[str, Spread],
    confidence: float,
) -> SettingResult:
    names = dict.fromkeys(name for run in counted for name in run.summary)
    metrics = {
        name: _metric(name, counted, spreads.get(name), confidence)
        for name in names
        if not _is_interval_end(name, names)
    }
    rates = _matched(counted, kl)
    single = [kl is not None and len(p := kl_path(run)) > 1 and rests_on_one_evaluation(p, kl) for run in counted]
    return SettingResult(
        setting=runs[0].setting,
        overrides=runs[0].overrides,
        runs=tuple(run.name for run in runs),
        failed=sum(run.exit_code != 0 and run.pruned is None for run in runs),
        pruned=sum(run.pruned is not None for run in runs),
        metrics={name: value for name, value in metrics.items() if value is not None},
        matched=_within(SHARE, over_seeds(rates, confidence, spreads[MATCHED])) if rates else None,
        single=sum(single),
    )


def _metric(name: str, runs: Sequence[RunResult], spread: Spread | None, confidence: float) -> Estimate | None:
    values = _values(name, runs)
    if not values:
        return None
    if len(values) == 1:
        (summary,) = (run.summary for run in runs if math.isfinite(run.summary.get(name, math.nan)))
        low, high = (summary.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
        own = math.isfinite(low) and math.isfinite(high)
        return Estimate(values[0], low, high) if own else Estimate(values[0], values[0], values[0])
    return _within(LIMITS.get(name), over_seeds(values, confidence, spread))


def _is_interval_end(name: str, names: dict[str, None]) -> bool:
    stem, _, end = name.rpartition("_")
    return end in ("low", "high") and {stem, f"{stem}_low", f"{stem}_high"} <= names.keys()


def _within(limits: tuple[float, float] | None, estimate: Estimate) -> Estimate:
    """The estimate with its interval cut at the limits; the value is unchanged, so an estimated KL may be negative."""
    if limits is None:
        return estimate
    low, high = max(estimate.low, limits[0]), min(estimate.high, limits[1])
    return Estimate(estimate.value, min(low, estimate.value), max(high, estimate.value))


def _standing(setting: SettingResult) -> tuple[bool, list[float]]:
    """The sort key: whether no run finished, then each criterion, with the worst value if it is missing."""
    values = [(criterion.sign, _value(setting, criterion)) for criterion in CRITERIA]
    unfinished = setting.failed + setting.pruned == len(setting.runs)
    return unfinished, [math.inf if value is None else -sign * value for sign, value in values]


def _first_used(settings: Sequence[SettingResult]) -> Criterion | None:
    """The criterion that orders the settings; None if nothing can be compared."""
    used = (item for item in CRITERIA if any(_value(setting, item) is not None for setting in settings))
    return next(used, None)


def _estimate(setting: SettingResult, criterion: Criterion) -> Estimate | None:
    return setting.matched if criterion.metric == MATCHED else setting.metrics.get(criterion.metric)


def _value(setting: SettingResult, criterion: Criterion) -> float | None:
    estimate = _estimate(setting, criterion)
    return None if estimate is None else estimate.value


def _settled(settings: Sequence[SettingResult], criterion: Criterion) -> bool:
    """Whether the first setting's interval lies on the better side of every other interval."""
    first, *others = [found for setting in settings if (found := _estimate(setting, criterion)) is not None]
    if not others or any(found.low == found.high for found in (first, *others)):
        return False
    if criterion.sign > 0:
        return first.low > max(other.high for other in others)
    return first.high < min(other.low for other in others)


def _still(runs: Sequence[RunResult]) -> list[str]:
    """The finished, judged runs that have not left the reference."""
    return [run.name for run in runs if not run.exit_code and run.trajectory and len(kl_path(run)) == 1]


def _in_words(criterion: Criterion | None, kl: float | None, runs: Sequence[RunResult]) -> str:
    if criterion is None:
        return "the order in which they were run: nothing can be compared"
    if criterion.metric == "win_rate" and kl is None and _still(runs):
        return f"{criterion.words}: no KL can be matched, every run has stayed at the reference"
    return criterion.words.format(kl=kl)


def _notes(
    settings: Sequence[SettingResult],
    runs: Sequence[RunResult],
    kl: float | None,
    seeds: Sequence[int],
    spreads: Mapping[str, Spread],
) -> list[str]:
    """Notes for the reader of the table."""
    notes = []
    if kl is not None and (still := _still(runs)):
        notes.append(f"Not compared at the matched KL, since their estimated KL is 0 or less: {', '.join(still)}.")
    if any(setting.single for setting in settings):
        notes.append(
            f"{ONE_EVALUATION} Based on a single evaluation, at the matched KL or before it, with all its noise: set "
            "evaluation.every for more points."
        )
    if 2 in seeds:
        shared = [spread for spread in spreads.values() if spread.freedom >= POOLED_FREEDOM]
        notes.append(
            "Two seeds have no interval of their own: those of win rates and accuracies take the spread between seeds "
            "from all settings, other quantities have none."
            if shared
            else "Two seeds of one setting have no interval: run a third seed."
        )
    return notes
