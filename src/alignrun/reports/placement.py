"""Names beside points, without one lying on another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

from alignrun.reports.svg import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
Box = tuple[float, float, float, float]
SIZE = 9.0
WIDTH, HEIGHT, GAP, HALO = 0.6 * SIZE, 1.25 * SIZE, 6.0, 3.0
"""Points of a character, of a line, between a point and its name, and of room around what is drawn."""
ROWS = (0, 1, -1, 2, -2, 3, -3)
"""How many lines a name may stand above its point, the best first."""


def place_labels(
    figure: "Figure", axes: "Axes", obstacles: Sequence[Box], points: Sequence[Point], labels: Sequence[str]
) -> None:
    """Write each label beside its point, where it covers least of the obstacles, given in data, and of other labels."""
    figure.draw_without_rendering()  # from here on the axes know where they stand
    scale = 72 / figure.dpi
    frame = tuple(axes.transAxes.transform([(0, 0), (1, 1)]).ravel() * scale)
    taken = []
    for box in obstacles:
        (left, bottom), (right, top) = axes.transData.transform([box[:2], box[2:]]) * scale
        taken.append((left - HALO, bottom - HALO, right + HALO, top + HALO))
    for (x, y), point, label in zip(axes.transData.transform(points) * scale, points, labels, strict=True):
        width = WIDTH * len(label)
        offsets = [
            (dx, rows * HEIGHT) for rows in ROWS for dx in (GAP, -GAP - width, -width / 2) if rows or dx != -width / 2
        ]
        boxes = [(x + dx, y + dy - HEIGHT / 2, x + dx + width, y + dy + HEIGHT / 2) for dx, dy in offsets]
        costs = [sum(_overlap(box, other) for other in taken) + _outside(box, frame) for box in boxes]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        far = abs(offsets[best][1]) > 1.5 * HEIGHT
        axes.annotate(
            label,
            point,
            offsets[best],
            textcoords="offset points",
            verticalalignment="center",
            fontsize=SIZE,
            color=INK,
            in_layout=False,
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.5} if far else None,
        )


def spread(figure: "Figure", axes: "Axes", points: Sequence[Point], labels: Sequence[str]) -> None:
    """Write each label to the right of its point, all of which are at one x, and as near as the others let it."""
    figure.draw_without_rendering()
    heights = axes.transData.transform(points)[:, 1] * (72 / figure.dpi)
    order = np.argsort(heights, kind="stable")
    room = HEIGHT * np.arange(len(points))
    places = isotonic_regression(heights[order] - room).x + room
    for index, place in zip(order, places, strict=True):
        axes.annotate(
            labels[index],
            points[index],
            (GAP, place - heights[index]),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=SIZE,
            color=INK,
        )


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _outside(box: Box, frame: Box) -> float:
    """The area of a box that lies beyond the frame."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)
