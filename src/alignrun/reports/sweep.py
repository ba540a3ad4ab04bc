"""The page of a sweep: the best setting, and the path of every run."""

from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import quote

from markupsafe import Markup

from alignrun.evaluation.ranking import ONE_EVALUATION
from alignrun.evaluation.results import Estimate, RunResult, SettingResult, SweepResult
from alignrun.evaluation.settled import undecided
from alignrun.reports import figures
from alignrun.reports.headline import share_in_words
from alignrun.reports.page import render
from alignrun.reports.quantities import in_order, quantity
from alignrun.reports.settings import common_to_all, own
from alignrun.reports.text import EXACT, Shown, number, percent, rate, shown
from alignrun.security.text import counted


def sweep_page(result: SweepResult) -> str:
    """The HTML of a sweep's report, for a file in the sweep's folder: it links to each run's own `report.html`."""
    names = in_order({name: None for setting in result.settings for name in setting.metrics})
    names = [name for name in names if not name.endswith(("_low", "_high"))]
    seeds = {run.name: run.seed for run in result.runs}
    common = common_to_all(result.settings)

    def named(one: RunResult | SettingResult) -> str:
        return own(one.setting, one.overrides, common)

    return render(
        "sweep.html",
        title="Sweep",
        result=result,
        shared=common,
        named=named,
        headline=_headline(result, common),
        confidence=f"{result.confidence:.0%}",
        matched_kl=None if result.matched_kl is None else number(result.matched_kl),
        has_matched=any(setting.matched is not None for setting in result.settings),
        titles=[quantity(name).label for name in names],
        rows=[
            (setting, _seeds(setting, seeds), _matched(setting),
             [shown(setting.metrics.get(name), quantity(name).form) for name in names])
            for setting in result.settings
        ],
        runs=[(run, _link(run), [_final(run, name) for name in names]) for run in result.runs],
        failed=[
            f"{run.name} ({named(run)}, exit code {run.exit_code})"
            for run in result.runs
            if run.exit_code and run.pruned is None
        ],
        pruned=[
            f"{run.name} ({named(run)}, after step {run.pruned})" for run in result.runs if run.pruned is not None
        ],
        frontier=_frontier(result),
    )  # fmt: skip


def _headline(result: SweepResult, common: Sequence[str]) -> str:
    """The best setting, as a sentence."""
    finished = sum(run.exit_code == 0 for run in result.runs)
    if not finished:
        return f"None of the {counted(len(result.runs), 'run')} has finished."
    best = result.settings[0]
    rates = (("at the matched KL", best.matched), ("at the end", best.metrics.get("win_rate")))
    found = [f", with a win rate of {_with_interval(value)} {when}" for when, value in rates if value is not None]
    name, count = own(best.setting, best.overrides, common) or "the default", len(result.settings)
    place = f"Of {count} settings, {name} comes first" if count > 1 else f"The only setting is {name}"
    unsettled = " The intervals over seeds do not show that it is the best." if count > 1 and not result.settled else ""
    return f"{place}{''.join(found[:1])}.{unsettled}"


def _with_interval(rate: Estimate) -> str:
    """A win rate, with a caveat if its interval over seeds contains one half."""
    if not rate.high - rate.low > EXACT:
        return f"{percent(rate.value)} (no interval)"
    unsettled = undecided(rate, "the reference")
    return f"{share_in_words(rate)[:-1]}{unsettled and ', which '}{unsettled})"


def _matched(setting: SettingResult) -> Shown:
    """The win rate at the matched KL, marked where it rests on one evaluation of a run."""
    found = shown(setting.matched, rate)
    return replace(found, value=f"{found.value} {ONE_EVALUATION}") if setting.single else found


def _seeds(setting: SettingResult, seeds: dict[str, int | None]) -> str:
    known = [str(seeds[name]) for name in setting.runs if seeds.get(name) is not None]
    ends = [f"{count} {how}" for how, count in (("failed", setting.failed), ("stopped early", setting.pruned)) if count]
    return "; ".join(part for part in (", ".join(known), *ends) if part)


def _link(run: RunResult) -> str | None:
    """The relative path of a run's report; None if it has none yet."""
    if run.exit_code and not run.trajectory:
        return None
    return f"{quote(run.name.strip('/'), errors='replace')}/report.html"


def _final(run: RunResult, name: str) -> Shown:
    return shown(run.summary.get(name), quantity(name).form)


def _frontier(result: SweepResult) -> Markup | None:
    common = common_to_all(result.settings)
    groups = [own(setting.setting, setting.overrides, common) or "default" for setting in result.settings]
    group_of = {name: group for group, setting in enumerate(result.settings) for name in setting.runs}
    trails = [
        figures.Trail(group_of[run.name], _marks(run, group_of[run.name]))
        for run in result.runs
        if run.trajectory and run.name in group_of
    ]
    return figures.trails(trails, groups, result.matched_kl, "frontier") if trails else None


def _marks(run: RunResult, group: int) -> tuple[figures.Mark, ...]:
    def exact(value: float) -> Estimate:
        return Estimate(value, value, value)

    name = f"{run.name} (setting {group + 1})"
    return tuple(figures.Mark(name, exact(point.kl), exact(point.win_rate)) for point in run.trajectory)
