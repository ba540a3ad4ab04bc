"""The curves of a run, from the rows of metrics.jsonl; draws nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alignrun.evaluation.results import Estimate
from alignrun.reports.quantities import POLICY, Quantity, in_order, quantity, with_intervals
from alignrun.reports.record import MetricsRow

POINTS = 400
"""A longer line is drawn as means of neighbouring steps: no screen shows more points."""
FEW = 30
"""A shorter line shows every step and no running mean."""
SHARE_OF_RUN = 20
"""The window of the running mean is this fraction of a run's steps."""
EVAL, ACTIONS = "eval/", "actions"
HIDDEN = {"epoch", "seconds", "prompts", "decided_pairs", "decided_prompts", "reference_length", "kl_k3"}
"""Metrics whose curve adds nothing to another one."""


@dataclass(frozen=True, slots=True)
class Line:
    """Values by step, in order; NaN for a missing value."""

    name: str
    points: tuple[tuple[float, float], ...]
    mean_of: int = 1
    """The number of steps that each point averages."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One small plot: training as a line, evaluations as points with whiskers."""

    name: str
    quantity: Quantity
    training: Line | None
    evaluations: tuple[tuple[int, Estimate], ...]
    actions: tuple[Line, ...] = ()
    """Probabilities of a game's actions, as the curve of the policy."""
    running: Line | None = None
    """The running mean of the training line; None if the line is short or smooth."""

    def in_words(self) -> str:
        """A text alternative of the plot."""
        values = [*self.training.points] if self.training else []
        values += [(step, estimate.value) for step, estimate in self.evaluations]
        values += [point for line in self.actions for point in line.points]
        known = sorted(point for point in values if math.isfinite(point[1]))
        (start, first), (end, last) = known[0], known[-1]
        form = self.quantity.form
        return f"{self.quantity.title} by step: {form(first)} at step {start:g}, {form(last)} at step {end:g}"


def evaluations(rows: Sequence[MetricsRow]) -> list[tuple[int, dict[str, Estimate]]]:
    """What each evaluation measured, by step."""
    found = []
    for row in rows:
        values = {name.removeprefix(EVAL): value for name, value in row.values.items() if name.startswith(EVAL)}
        if values:
            found.append((row.step, with_intervals(values)))
    return found


def all_curves(rows: Sequence[MetricsRow]) -> list[Curve]:
    """A curve for every metric with at least two values, the important ones first."""
    evaluated = evaluations(rows)
    names = [name for _, values in evaluated for name in values if not name.startswith(POLICY)]
    names += [name for row in rows for name in row.values if not name.startswith(EVAL)]
    wanted = dict.fromkeys(name for name in names if name not in HIDDEN)
    found = [_curve(name, rows, evaluated) for name in in_order(wanted)]
    return [curve for curve in [_actions(evaluated), *found] if curve is not None]


def _curve(name: str, rows: Sequence[MetricsRow], evaluated: list[tuple[int, dict[str, Estimate]]]) -> Curve | None:
    training = [(float(row.step), row.values[name]) for row in rows if name in row.values]
    points = [(step, values[name]) for step, values in evaluated if name in values]
    points = [(step, estimate) for step, estimate in points if math.isfinite(estimate.value)]
    if len(points) + sum(math.isfinite(value) for _, value in training) < 2:
        return None
    line, known = Line("training", tuple(training)), quantity(name)
    running = thin(running_mean(line)) if known.smooth and len(training) > FEW else None
    return Curve(name, known, thin(line) if training else None, tuple(points), running=running)


def _actions(evaluated: list[tuple[int, dict[str, Estimate]]]) -> Curve | None:
    """The mixed policy of a matrix game over its evaluations."""
    names = dict.fromkeys(name for _, values in evaluated for name in values if name.startswith(POLICY))
    lines = [
        Line(
            name.removeprefix(POLICY),
            tuple((float(step), values[name].value) for step, values in evaluated if name in values),
        )
        for name in names
    ]
    if sum(math.isfinite(value) for line in lines[:1] for _, value in line.points) < 2:
        return None
    label = Quantity("probability of each action", quantity("win_rate").form)
    return Curve(ACTIONS, label, None, (), tuple(lines))


def running_mean(line: Line) -> Line:
    """Means of a centred window of `SHARE_OF_RUN` around each point: m_t = mean of the finite x_s, |s − t| ≤ h.

    Only for points with a complete window, so that the mean of a straight line is the line, and the ends do not follow
    single values.
    """
    values = [value for _, value in line.points]
    half = max(2, round(len(values) / SHARE_OF_RUN / 2))
    means = []
    for place in range(half, len(values) - half):
        finite = [value for value in values[place - half : place + half + 1] if math.isfinite(value)]
        means.append((line.points[place][0], sum(finite) / len(finite) if finite else math.nan))
    return Line("running mean", tuple(means), 2 * half + 1)


def thin(line: Line, limit: int = POINTS) -> Line:
    """Means of equally many neighbours if there are more points than `limit`."""
    size = math.ceil(len(line.points) / limit)
    if size <= 1:
        return line
    means = []
    for start in range(0, len(line.points), size):
        steps, values = zip(*line.points[start : start + size], strict=True)
        finite = [value for value in values if math.isfinite(value)]
        means.append((sum(steps) / len(steps), sum(finite) / len(finite) if finite else math.nan))
    return Line(line.name, tuple(means), max(size, line.mean_of))
