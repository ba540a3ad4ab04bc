"""The settings of a sweep from best to worst: averaged over seeds, policies compared at equal KL from the reference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import stats

from alignrun.evaluation.results import Estimate, RunResult, SettingResult, SweepResult

NO_DISTANCE = 1e-6
"""Nats: a policy that is nearer to the reference is the reference up to rounding."""
SHARE, DISTANCE = (0.0, 1.0), (0.0, math.inf)
LIMITS = {
    "win_rate": SHARE,
    "accuracy": SHARE,
    "kl": DISTANCE,
    "exploitability": DISTANCE,
    "duality_gap": DISTANCE,
}
"""Where the true values of metrics lie: intervals end there."""
MATCHED = "matched"


@dataclass(frozen=True, slots=True)
class Criterion:
    """What settings are ordered by."""

    metric: str
    """A final metric, or `MATCHED`."""
    sign: int
    """1 where larger is better, −1 where smaller is."""
    words: str


CRITERIA = (
    # A best response is as good as what it gains, however far from an equilibrium it is itself.
    Criterion("opponent/regularised_gain", 1, "regularised gain against the opponent, largest first"),
    Criterion("opponent/gain", 1, "gain against the opponent, largest first"),
    Criterion("duality_gap", -1, "duality gap, each at its own kl_tau, smallest first; then exploitability"),
    Criterion("exploitability", -1, "exploitability, smallest first"),
    Criterion(MATCHED, 1, "win rate at KL {kl:.3g} nats, interpolated"),
    Criterion("win_rate", 1, "final win rate"),
    Criterion("accuracy", 1, "held-out accuracy"),
    Criterion("loss", -1, "held-out loss, smallest first"),
)
"""The first that any setting has orders them; the others break ties and order the settings that lack it."""


def rank(directory: str, runs: Sequence[RunResult], command: str, confidence: float = 0.95) -> SweepResult:
    """Aggregate the runs of each setting over seeds and order the settings; those of which no run finished come last.

    Every policy wins more the further it goes from the reference, so win rates are compared at the KL(π‖μ) that all
    finished runs have reached. Where one of them has stayed at the reference no such KL is left, and the final win
    rates are compared.
    """
    kl = matched_kl(runs)
    compared_at = None if kl is None or kl < NO_DISTANCE else kl
    groups: dict[str, list[RunResult]] = {}
    for run in runs:
        groups.setdefault(run.setting, []).append(run)
    settings = [_aggregate(setting, group, compared_at, confidence) for setting, group in groups.items()]
    settings.sort(key=_standing)
    places = {setting.setting: place for place, setting in enumerate(settings)}
    return SweepResult(
        directory=directory,
        settings=tuple(settings),
        runs=tuple(sorted(runs, key=lambda run: (run.exit_code != 0, places[run.setting]))),
        matched_kl=kl,
        ranked_by=_in_words(settings, kl),
        command=command,
        confidence=confidence,
    )


def matched_kl(runs: Sequence[RunResult]) -> float | None:
    """The largest KL that every finished run with a trajectory has reached; None where there is no such run."""
    paths = [path(run) for run in runs if not run.exit_code]
    return min((max(kl for kl, _ in points) for points in paths if len(points) > 1), default=None)


def path(run: RunResult) -> list[tuple[float, float]]:
    """(KL, win rate) along a run: from the reference, at 0 and ½, through its evaluations."""
    points = [(point.kl, point.win_rate) for point in run.trajectory]
    return [(0.0, 0.5), *(point for point in points if all(map(math.isfinite, point)))]


def win_rate_at(points: Sequence[tuple[float, float]], kl: float) -> float:
    """The win rate where a path first reaches a positive KL, linear between its points; it must reach it."""
    for (before, rate), (after, next_rate) in pairwise(points):
        if after >= kl:
            return rate + (kl - before) / (after - before) * (next_rate - rate)
    raise ValueError(f"no point of the path reaches a KL of {kl}")


def over_seeds(values: Sequence[float], confidence: float) -> Estimate:
    """The mean with Student's t interval, exact for the few normal values that seeds are.

    A bootstrap of a handful of values is far too narrow. A single value has no interval: both ends equal it.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, mean, mean)
    quantile = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def _aggregate(setting: str, runs: Sequence[RunResult], kl: float | None, confidence: float) -> SettingResult:
    by_seed: dict[int | None, RunResult] = {}
    for run in runs:
        if not run.exit_code:
            by_seed.setdefault(run.seed, run)  # the copy of a seed would only pretend that seeds agree
    finished = list(by_seed.values())
    names = dict.fromkeys(name for run in finished for name in run.summary)
    metrics = {name: _metric(name, finished, confidence) for name in names if not _is_interval_end(name, names)}
    matched = None
    paths = [points for run in finished if len(points := path(run)) > 1]
    if kl is not None and paths:
        matched = _within(SHARE, over_seeds([win_rate_at(points, kl) for points in paths], confidence))
    return SettingResult(
        setting=setting,
        runs=tuple(run.name for run in runs),
        failed=sum(run.exit_code != 0 and run.pruned is None for run in runs),
        pruned=sum(run.pruned is not None for run in runs),
        metrics={name: value for name, value in metrics.items() if value is not None},
        matched=matched,
    )


def _metric(name: str, runs: Sequence[RunResult], confidence: float) -> Estimate | None:
    having = [run.summary for run in runs if math.isfinite(run.summary.get(name, math.nan))]
    if not having:
        return None
    if len(having) == 1:
        value = having[0][name]
        low, high = (having[0].get(f"{name}_{end}", math.nan) for end in ("low", "high"))
        own = math.isfinite(low) and math.isfinite(high)
        return Estimate(value, low, high) if own else Estimate(value, value, value)
    return _within(LIMITS.get(name), over_seeds([summary[name] for summary in having], confidence))


def _is_interval_end(name: str, names: dict[str, None]) -> bool:
    stem, _, end = name.rpartition("_")
    return end in ("low", "high") and {stem, f"{stem}_low", f"{stem}_high"} <= names.keys()


def _within(limits: tuple[float, float] | None, estimate: Estimate) -> Estimate:
    """The estimate, its interval cut at the limits; an estimated KL may itself be below 0, and stays what it is."""
    if limits is None:
        return estimate
    low, high = max(estimate.low, limits[0]), min(estimate.high, limits[1])
    return Estimate(estimate.value, min(low, estimate.value), max(high, estimate.value))


def _standing(setting: SettingResult) -> tuple[bool, list[float]]:
    """What settings are sorted by: whether no run finished, and each criterion, the worst value where it is missing."""
    values = [(criterion.sign, _value(setting, criterion)) for criterion in CRITERIA]
    unfinished = setting.failed + setting.pruned == len(setting.runs)
    return unfinished, [math.inf if value is None else -sign * value for sign, value in values]


def _value(setting: SettingResult, criterion: Criterion) -> float | None:
    estimate = setting.matched if criterion.metric == MATCHED else setting.metrics.get(criterion.metric)
    return None if estimate is None else estimate.value


def _in_words(settings: Sequence[SettingResult], kl: float | None) -> str:
    used = (item for item in CRITERIA if any(_value(setting, item) is not None for setting in settings))
    first = next(used, None)
    if first is None:
        return "the order in which they were run: nothing can be compared"
    if first.metric == "win_rate" and kl is not None:
        return f"{first.words}: no KL can be matched, a run has stayed at the reference"
    return first.words.format(kl=kl)
