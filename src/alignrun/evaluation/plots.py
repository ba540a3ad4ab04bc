"""Figures of measurements. matplotlib is slow to import, so it is imported only to draw, and pyplot never."""

import io
import textwrap
from typing import TYPE_CHECKING

from alignrun.evaluation.calibration import Reliability
from alignrun.evaluation.intervals import wilson_interval
from alignrun.security.text import counted
from alignrun.security.working_directory import elsewhere

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIDENCE = 0.95


def reliability_plot(reliability: Reliability, title: str) -> "Figure":
    """Labels against predicted probabilities with Wilson whiskers and the diagonal; below, how many pairs a bin holds.

    A whisker assumes that the pairs of a bin are independent: it is too short if many share a prompt.
    """
    with elsewhere():  # ignore a matplotlibrc in the current folder
        from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(5.2, 7.0), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    top.plot([0, 1], [0, 1], color="0.45", linestyle="--", linewidth=1, label="perfectly calibrated", zorder=1)
    predicted = [b.predicted for b in reliability.bins]
    labels = [b.label for b in reliability.bins]
    bounds = [wilson_interval(b.label, b.count, CONFIDENCE) for b in reliability.bins]
    top.errorbar(
        predicted,
        labels,
        # The interval contains the share; rounding can place it slightly outside.
        yerr=[
            [max(0.0, share - low) for share, (low, _) in zip(labels, bounds, strict=True)],
            [max(0.0, high - share) for share, (_, high) in zip(labels, bounds, strict=True)],
        ],
        color="black",
        marker="o",
        markersize=5,
        linewidth=0.7,
        elinewidth=1,
        capsize=3,
        label=f"model, {CONFIDENCE:.0%} interval",
        zorder=2,
    )
    error = f"calibration error {reliability.ece:.3f}, {counted(reliability.pairs, 'pair')} in both orders"
    top.set_title(error, fontsize="medium")
    figure.suptitle("\n".join(textwrap.wrap(title, 54)), parse_math=False)
    top.set_ylabel("share of people who prefer the first completion")
    top.set_ylim(-0.02, 1.02)
    below.bar(
        [b.low for b in reliability.bins],
        [b.count for b in reliability.bins],
        width=[b.high - b.low for b in reliability.bins],
        align="edge",
        color="0.8",
        edgecolor="black",
        linewidth=0.8,
    )
    below.set_ylabel("pairs")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    below.set_xlabel("predicted probability that the first completion is preferred")
    below.set_xlim(-0.02, 1.02)
    for axes in (top, below):
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    top.yaxis.set_major_formatter(PercentFormatter(1))
    # Outside the axes: with few pairs the whiskers fill them.
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def as_svg(figure: "Figure") -> str:
    """The figure as a deterministic SVG whose text stays text.

    The figure has its own canvas: no display and no pyplot state.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "alignrun"}):
        # `savefig` would draw everything twice, first for the layout, which this single draw computes too.
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Title": figure.get_suptitle()})
    return text.getvalue().decode()
