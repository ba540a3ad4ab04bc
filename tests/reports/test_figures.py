"""What the figures draw, read off the axes and off the SVG."""

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from alignrun.evaluation.results import Estimate
from alignrun.reports import figures
from alignrun.reports.curves import Curve, Line, all_curves, running_mean
from alignrun.reports.figures import Mark, Trail
from alignrun.reports.quantities import quantity
from alignrun.reports.record import MetricsRow

MARKS = [
    Mark("1 $x_1$ < y", Estimate(2.0, 1.5, 2.75), Estimate(0.6, 0.52, 0.7)),
    Mark("2 other_one", Estimate(1.0, 1.0, 1.0), Estimate(0.55, float("nan"), float("nan"))),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are made, before they become text."""
    made: list[Figure] = []

    def keep(draw: Callable[[Figure], None], size: tuple[float, float], _key: str, _label: str) -> Markup:
        made.append(Figure(figsize=size, layout="constrained"))
        draw(made[-1])
        return Markup("")

    monkeypatch.setattr(figures, "inline", keep)
    return made


def whiskers(axes: Any) -> list[list[list[float]]]:
    """The segments of all error bars."""
    return [segment.tolist() for bar in axes.containers for line in bar.lines[2] for segment in line.get_segments()]


def test_whiskers_reach_from_end_to_end(drawn: list[Figure]) -> None:
    figures.frontier(MARKS, "key")
    (axes,) = drawn[0].axes
    np.testing.assert_allclose(
        whiskers(axes),
        [
            [[1.5, 0.6], [2.75, 0.6]], [[2.0, 0.52], [2.0, 0.7]],
            [[1.0, 0.55], [1.0, 0.55]], [[1.0, 0.55], [1.0, 0.55]],
        ],
    )  # fmt: skip
    styles = [(bar.lines[0].get_marker(), bar.lines[0].get_markerfacecolor()) for bar in axes.containers]
    assert len(set(styles)) == 2, "distinguishable without colour"


def test_a_curve_has_training_as_a_line_and_evaluations_with_whiskers(drawn: list[Figure]) -> None:
    training = Line("training", ((1.0, 0.4), (2.0, float("nan")), (3.0, 0.5)))
    figures.curve(Curve("kl", quantity("kl"), training, ((2, Estimate(0.45, 0.4, 0.52)),)), "key")
    (axes,) = drawn[0].axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), training.points)
    np.testing.assert_allclose(whiskers(axes), [[[2, 0.4], [2, 0.52]]])


@pytest.mark.parametrize(("values", "scale"), [((0.5, 0.01), "log"), ((0.5, 0.4), "linear"), ((0.5, 0.0), "linear")])
def test_the_distance_to_an_equilibrium(values: tuple[float, float], scale: str, drawn: list[Figure]) -> None:
    points = tuple((10 * place, Estimate(value, value, value)) for place, value in enumerate(values))
    figures.distance(Curve("kl_equilibrium", quantity("kl_equilibrium"), None, points), "key")
    (axes,) = drawn[0].axes
    assert axes.get_yscale() == scale
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [(0, values[0]), (10, values[1])])
    drawn[0].draw_without_rendering()
    assert not any("$" in label.get_text() for label in axes.get_yticklabels()), "text is not mathematics here"
    assert scale == "log" or axes.get_ylim()[0] == 0, "a distance is read from 0"


def test_a_legend_names_every_policy(drawn: list[Figure]) -> None:
    names = [f"{key} name" for key in range(1, 25)]
    figures.frontier([Mark(name, MARKS[0].kl, MARKS[0].win_rate) for name in names], "key")
    legend = drawn[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == names
    styles = [(bar.lines[0].get_marker(), bar.lines[0].get_markerfacecolor()) for bar in drawn[0].axes[0].containers]
    assert len(set(styles)) == len(names), "distinguishable without colour"


def test_the_ends_of_a_path_are_named(drawn: list[Figure]) -> None:
    figures.path([*MARKS, Mark("step 30", MARKS[0].kl, MARKS[0].win_rate)], "key")
    assert {"1 $x_1$ < y", "step 30"} <= {text.get_text() for text in drawn[0].axes[0].texts}


def test_runs_of_a_sweep_look_like_their_setting(drawn: list[Figure]) -> None:
    figures.trails([Trail(0, tuple(MARKS)), Trail(1, tuple(MARKS)), Trail(0, tuple(MARKS))], ["a", "b"], 1.5, "key")
    (axes,) = drawn[0].axes
    _, first, second, third, *_ = axes.lines
    assert (first.get_marker(), first.get_linestyle()) == (third.get_marker(), third.get_linestyle())
    assert (first.get_marker(), first.get_linestyle()) != (second.get_marker(), second.get_linestyle())
    assert [line.get_xdata()[0] for line in axes.lines if line.get_label() == "matched KL"] == [1.5]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["a", "b", "matched KL"]


def test_names_are_text_and_no_mathematics() -> None:
    svg = ElementTree.fromstring(figures.frontier(MARKS, "key"))
    texts = ["".join(node.itertext()).strip() for node in svg.iter("text")]
    assert {"1 $x_1$ < y", "2 other_one", "win rate against the reference"} <= set(texts)


def test_colours_are_the_page_s() -> None:
    svg = figures.frontier(MARKS, "key")
    assert "var(--series-0)" in svg
    assert "var(--muted)" in svg
    assert "<style" not in svg


def test_a_win_rate_has_its_half_and_a_running_mean(drawn: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    raw = 0.5 + rng.normal(size=200) / 10
    rows = [
        MetricsRow(step, {"win_rate": value, "learning_rate": value})
        for step, value in enumerate(raw.tolist(), start=1)
    ]
    curves = {curve.name: curve for curve in all_curves(rows)}
    for curve in curves.values():
        figures.curve(curve, "key")
    (axes,), (rates,) = (figure.axes for figure in drawn)
    whole = np.convolve(raw, np.full(11, 1 / 11), "valid")
    np.testing.assert_allclose(axes.lines[1].get_ydata(), whole)
    np.testing.assert_allclose(axes.lines[1].get_xdata(), range(6, 196))
    assert axes.lines[2].get_ydata()[0] == 0.5
    assert len(rates.lines) == 1, "a schedule does not scatter, and has no half"


def test_a_running_mean_keeps_a_straight_line_and_skips_what_is_missing() -> None:
    straight = Line("training", tuple((float(step), 2.0 * step) for step in range(100)))
    np.testing.assert_allclose(running_mean(straight).points, straight.points[2:-2])
    holed = Line("training", tuple((float(step), float("nan") if step % 3 else 1.0) for step in range(100)))
    assert {value for _, value in running_mean(holed).points} == {1.0}
