"""The figures of the pages. Series differ in marker, dashes and name, never in colour alone."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from alignrun.evaluation.results import Estimate
from alignrun.reports.curves import FEW, Curve, Line
from alignrun.reports.svg import INK, MUTED, PAPER, SERIES, inline
from alignrun.reports.text import clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALL, LARGE = (3.9, 2.4), (4.4, 3.9)
"""Inches; at the width of a phone, text in both has the size of the page's small print."""
MARKERS = "osD^vPX<>*hd"
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
WIN_RATE, KL = "win rate against the reference", "KL(policy ‖ reference), nats"


@dataclass(frozen=True, slots=True)
class Mark:
    """A policy in the plane of KL and win rate."""

    label: str
    kl: Estimate
    win_rate: Estimate


@dataclass(frozen=True, slots=True)
class Trail:
    """The path of one run through that plane; trails of one group share a style."""

    group: int
    marks: tuple[Mark, ...]


def curve(measured: Curve, key: str) -> Markup:
    """A metric over the steps."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        if measured.training:
            dots = "." if len(measured.training.points) <= FEW else None
            faint = 0.35 if measured.running else 0.65
            axes.plot(*_columns(measured.training.points), color=MUTED, alpha=faint, linewidth=1, marker=dots)
        if measured.running:
            axes.plot(*_columns(measured.running.points), color=MUTED, linewidth=1.8)
        if measured.quantity.even is not None:
            axes.axhline(measured.quantity.even, color=INK, linewidth=0.8)
        for index, line in enumerate(measured.actions):
            axes.plot(*_columns(line.points), label=clip(line.name, 16), markevery=0.1, **_style(index))
        if measured.evaluations:
            steps, estimates = [step for step, _ in measured.evaluations], [value for _, value in measured.evaluations]
            _whiskers(axes, steps, estimates, color=SERIES[0], marker="o", linestyle="--", linewidth=0.9)
        if measured.actions:
            figure.legend(loc="outside lower center", ncols=3)
        axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.set_xlabel("step")

    return inline(draw, SMALL, key, measured.in_words())


def distance(measured: Curve, key: str) -> Markup:
    """A policy's distance from the equilibrium of its game by step; logarithmic if it shrinks tenfold or more."""
    points = [(float(step), estimate.value) for step, estimate in measured.evaluations]
    values = [value for _, value in points]

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.plot(*_columns(points), markevery=max(1, len(points) // FEW), **_style(0))
        if min(values) > 0 and max(values) >= 10 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.set_ylim(bottom=min(0.0, *values))
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.set_xlabel("step")
        axes.set_ylabel(measured.quantity.title)

    return inline(draw, LARGE, key, measured.in_words())


def path(marks: Sequence[Mark], key: str) -> Markup:
    """The evaluations of one run in that plane, in the order of their steps."""

    def draw(figure: "Figure") -> None:
        axes = _plane(figure)
        _trail(axes, marks, _style(0))
        for mark in (marks[0], marks[-1]):
            place = (mark.kl.value, mark.win_rate.value)
            axes.annotate(mark.label, place, (6, 6), textcoords="offset points", color=INK)

    return inline(draw, LARGE, key, _plane_in_words(marks))


def frontier(marks: Sequence[Mark], key: str) -> Markup:
    """Policies by win rate and KL from the reference."""

    def draw(figure: "Figure") -> None:
        axes = _plane(figure)
        for index, mark in enumerate(marks):
            _cross(axes, mark, _style(index) | {"linestyle": "none"}, label=clip(mark.label, 48))
        figure.legend(loc="outside lower left")

    return inline(draw, _with_legend(len(marks)), key, _plane_in_words(marks))


def bounds(lines: Sequence[Line], key: str) -> Markup:
    """The bound on exploitability by number of proposals."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.set_xscale("log", base=2)
        for index, line in enumerate(lines):
            axes.plot(*_columns(line.points), label=clip(line.name, 48), **_style(index))
        counts = sorted({count for line in lines for count, _ in line.points})
        axes.set_xticks(counts, [f"{count:g}" for count in counts])
        axes.minorticks_off()
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("proposals among which the response is chosen")
        axes.set_ylabel("P(response ≻ policy) − ½")
        figure.legend(loc="outside lower left")

    ends = [f"{line.name} {line.points[-1][1]:.3f} at {line.points[-1][0]:g}" for line in lines]
    return inline(draw, _with_legend(len(lines)), key, "Gain by number of proposals: " + "; ".join(ends))


def trails(found: Sequence[Trail], groups: Sequence[str], matched_kl: float | None, key: str) -> Markup:
    """The runs of a sweep, from evaluation to evaluation."""

    def draw(figure: "Figure") -> None:
        axes = _plane(figure)
        for trail in found:
            axes.plot(*_columns(_positions(trail.marks)), **_style(trail.group))
        for group in sorted({trail.group for trail in found}):
            axes.plot([], [], label=clip(groups[group], 52), **_style(group))
        if matched_kl is not None:
            axes.axvline(matched_kl, color=INK, linestyle=(0, (2, 2)), linewidth=1.1, label="matched KL")
        figure.legend(loc="outside lower left")

    ends = [trail.marks[-1] for trail in found]
    return inline(draw, _with_legend(len(groups)), key, _plane_in_words(ends))


def _with_legend(entries: int) -> tuple[float, float]:
    """The size of a large figure plus one line per entry of its legend."""
    return LARGE[0], LARGE[1] + 0.2 * entries


def _plane(figure: "Figure") -> "Axes":
    axes = figure.subplots()
    axes.axhline(0.5, color=INK, linewidth=0.8)
    axes.set_xlabel(KL)
    axes.set_ylabel(WIN_RATE)
    axes.margins(0.12)
    return axes


def _plane_in_words(marks: Sequence[Mark]) -> str:
    places = [f"{mark.label}: {mark.win_rate.value:.3f} at {mark.kl.value:.3g} nats" for mark in marks]
    return "Win rate against the reference by KL. " + "; ".join(places)


def _trail(axes: "Axes", marks: Sequence[Mark], style: dict[str, Any]) -> None:
    for mark in marks:
        _cross(axes, mark, style | {"linestyle": "none"})
    for start, end in pairwise(_positions(marks)):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": MUTED, "linewidth": 1})


def _cross(axes: "Axes", mark: Mark, style: dict[str, Any], label: str = "") -> None:
    _whiskers(axes, [mark.kl.value], [mark.win_rate], [mark.kl], label=label, **style)


def _whiskers(
    axes: "Axes", x: Sequence[float], y: Sequence[Estimate], wide: Sequence[Estimate] | None = None, **style: Any
) -> None:
    axes.errorbar(
        x,
        [estimate.value for estimate in y],
        yerr=_distances(y),
        xerr=_distances(wide) if wide else None,
        elinewidth=0.9,
        **style,
    )


def _distances(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Distances from the values to the ends of their intervals, as errorbar takes them."""
    ends = [_ends(estimate) for estimate in estimates]
    return [
        [estimate.value - low for estimate, (low, _) in zip(estimates, ends, strict=True)],
        [high - estimate.value for estimate, (_, high) in zip(estimates, ends, strict=True)],
    ]


def _ends(estimate: Estimate) -> tuple[float, float]:
    """The interval to draw: an end that is not finite, or is rounded past the value, becomes the value."""
    low = estimate.low if math.isfinite(estimate.low) else estimate.value
    high = estimate.high if math.isfinite(estimate.high) else estimate.value
    return min(low, estimate.value), max(high, estimate.value)


def _positions(marks: Iterable[Mark]) -> list[tuple[float, float]]:
    return [(mark.kl.value, mark.win_rate.value) for mark in marks]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _style(index: int) -> dict[str, Any]:
    """Alternating full and hollow markers, which distinguish two dozen series in black and white."""
    colour = SERIES[index % len(SERIES)]
    return {
        "color": colour,
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markerfacecolor": PAPER if (index + index // len(MARKERS)) % 2 else colour,
        "markeredgecolor": colour,
    }
