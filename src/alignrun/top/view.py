"""Draw a followed run within the height and width of the terminal."""

import math
import shlex
from array import array
from collections.abc import Mapping, Sequence
from datetime import timedelta

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from alignrun.evaluation.results import Estimate
from alignrun.evaluation.settled import verdict
from alignrun.run.state import State
from alignrun.security.text import clean
from alignrun.top.follow import MOST_METRICS, Followed
from alignrun.top.symbols import ABSENT, arrow, figure, sparkline

LEADING = ("loss", "win_rate", "accuracy", "kl", "grad_norm")
"""Metrics that come first, and are dropped last when space is short."""
UNLIMITED = 10_000
"""Lines when the output is not limited to the terminal's height."""
TABLE_LINES = ((4, UNLIMITED), (3, UNLIMITED), (2, 13))
"""Minimum and maximum lines of the training metrics, the evaluation metrics and the win rates."""
MOST_TEXT = 6
"""Lines per text of the sample."""
MOST_CHARACTERS = 4000
NAME_WIDTH, NUMBER_WIDTH, LABEL_WIDTH = 18, 10, 11
LEAST_NAME, LEAST_SPARKLINE, LEAST_BAR = 10, 16, 6


class View:
    """A renderable view of a followed run; each drawing shows its current state at the terminal's current size.

    Args:
        run: the followed run.
        fit: show no more lines than the terminal has.
    """

    def __init__(self, run: Followed, *, fit: bool) -> None:
        self._run, self._fit = run, fit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        run, width = self._run, options.max_width
        lines = _head(run, console, width, live=self._fit)
        if run.left_out:
            lines.append(Text(f"more than {MOST_METRICS} metrics: the first ones are shown", style="dim"))
        tables = [
            _metrics("training", run.training, width),
            _metrics("evaluation", run.evaluation, width),
            _judged(run, width),
        ]
        heading, texts = _sample(run, console, width)
        wants = [
            (min(least, len(table)), min(most, len(table)))
            for table, (least, most) in zip(tables, TABLE_LINES, strict=True)
        ]
        wants.append((1 + len(texts), 1 + sum(min(len(text), MOST_TEXT) for text in texts)) if run.sample else (0, 0))
        space = (console.height if self._fit else UNLIMITED) - len(lines)
        given = split_lines(space, wants)
        gap = [Text()] if space - sum(given) >= len(given) else []
        for table, count in zip(tables, given, strict=False):
            lines += [*gap, *_top_of(table, count)] if count else []
        if given[-1]:
            lines += [*gap, heading]
            counts = split_lines(given[-1] - 1, [(1, min(len(text), MOST_TEXT)) for text in texts])
            for text, count in zip(texts, counts, strict=True):
                lines += _cut(text, count)
        for line in lines:
            line.truncate(width, overflow="ellipsis")
            yield line


def split_lines(space: int, wants: Sequence[tuple[int, int]]) -> list[int]:
    """Divide lines among parts that each request (minimum, maximum).

    A part whose minimum does not fit gets none; the rest is dealt out one line at a time.
    """
    given: list[int] = []
    for least, _ in wants:
        given.append(least if least <= space else 0)
        space -= given[-1]
    while space > 0:
        hungry = [index for index, (_, most) in enumerate(wants) if 0 < given[index] < most][:space]
        if not hungry:
            break
        for index in hungry:
            given[index] += 1
        space -= len(hungry)
    return given


def _head(run: Followed, console: Console, width: int, live: bool) -> list[Text]:
    """The name and state, the progress bar, and the next command."""
    dot = Text.assemble(("● ", run.state.style), run.state.value)
    room = max(width - dot.cell_len - 1, 0)
    name = Text.assemble((clean(run.name), "bold"), "  ", clean(run.title))
    name.truncate(room, overflow="ellipsis", pad=True)
    facts = [f"step {run.step}/{run.steps}", f"{min(run.step / run.steps, 1):.0%}"]
    if run.seconds_left is not None:
        facts.append(f"{timedelta(seconds=round(run.seconds_left))} left")
    if rates := run.training.get("tokens_per_second"):
        facts.append(f"{figure(rates[-1])} tokens/s")
    while len(facts) > 1 and cell_len("  ".join(facts)) > width:
        facts.pop()
    line = "  ".join(facts)
    bar = width - cell_len(line) - 2
    filled = min(int(bar * run.step / run.steps), bar)
    progress = Text(line)
    if bar >= LEAST_BAR:
        progress = Text.assemble(("━" * filled, "cyan"), ("─" * (bar - filled), "dim"), "  ", line)
    lines = [Text.assemble(name, " ", dot), progress]
    if run.failure:
        lines += Text(clean(run.failure), style="red").wrap(console, width, overflow="fold")
    if run.state in (State.stopped, State.failed):
        command = Text(f"continue with `alignrun resume {clean(shlex.quote(run.path))}`", style="yellow")
        lines += command.wrap(console, width, overflow="fold")
    elif not run.training and not run.evaluation:
        lines.append(Text("waiting for the first step"))
    if live:
        lines.append(Text("Ctrl-C leaves, the run continues" if run.state is State.running else "Ctrl-C leaves", "dim"))
    return lines


def _metrics(title: str, metrics: Mapping[str, "array[float]"], width: int) -> list[Text]:
    """A heading and a line per metric; columns that do not fit are dropped, except the last value."""
    ends = ("_low", "_high")
    shown = [name for name in metrics if not (name.endswith(ends) and name.rpartition("_")[0] in metrics)]
    if not shown:
        return []
    shown.sort(key=lambda name: LEADING.index(name) if name in LEADING else len(LEADING))
    name_width = min(NAME_WIDTH, max(width - NUMBER_WIDTH - LEAST_SPARKLINE - 5, LEAST_NAME))
    before = name_width + 1 + NUMBER_WIDTH + 2
    range_width = 2 * NUMBER_WIDTH + 3
    ranged = width - before - range_width - 4 >= LEAST_SPARKLINE
    history = width - before - 2 - (range_width + 2 if ranged else 0)
    heading = f"{set_cell_size(title, name_width)} {'last':>{NUMBER_WIDTH}}  "
    heading += f"  {'min':>{NUMBER_WIDTH}} – {'max':<{NUMBER_WIDTH}}" if ranged else ""
    lines = [Text(heading + ("  history" if history >= len("history") else ""), style="bold")]
    for name in shown:
        values = np.array(metrics[name])
        line = Text(f"{set_cell_size(clean(name), name_width)} ")
        line.append(f"{figure(values[-1]):>{NUMBER_WIDTH}}", style="bold")
        line.append(f" {arrow(values)}")
        if ranged:
            finite = values[np.isfinite(values)]
            low, high = (finite.min(), finite.max()) if len(finite) else (math.nan, math.nan)
            line.append(f"  {figure(low):>{NUMBER_WIDTH}} – {figure(high):<{NUMBER_WIDTH}}", style="dim")
        line.append("  " + sparkline(values, max(history, 1)), style="cyan")
        lines.append(line)
    return lines


def _judged(run: Followed, width: int) -> list[Text]:
    """The win rate at each evaluation, the newest first, with its interval on a common axis."""
    if not run.judged:
        return []
    digits = max(len(str(point.step)) for point in run.judged)
    estimates = [point.found for point in run.judged]
    has_interval = any(found.low < found.high for found in estimates)
    axis = [0.5, *(end for found in estimates for end in (found.low, found.value, found.high))]
    room = width - (len("step ") + digits + 2 + 5 + (2 + 13 if has_interval else 0)) - 2
    title = str(run.judged_name).replace("_", " ")
    heading = f"{title} at each evaluation" + (f", {run.confidence:.0%} interval" if has_interval else "")
    lines = [Text(heading + ("  (┊ is ½)" if room >= LEAST_SPARKLINE else ""), style="bold")]
    for step, found in reversed(run.judged):
        style = {1: "green", 0: "", -1: "red"}[verdict(found)]
        line = Text(f"step {step:>{digits}}  ")
        line.append(f"{found.value:.3f}", style=f"bold {style}")
        if has_interval:
            line.append(f"  {found.low:.3f} – {found.high:.3f}")
        if room >= LEAST_SPARKLINE:
            line.append("  ").append(_interval_plot(found, min(axis), max(axis), min(room, 60)), style=style)
        lines.append(line)
    return lines


def _interval_plot(found: Estimate, low: float, high: float, width: int) -> str:
    def column(value: float) -> int:
        return round((value - low) / (high - low or 1.0) * (width - 1))

    cells = [" "] * width
    for index in range(column(found.low), column(found.high) + 1):
        cells[index] = "─"
    half = column(0.5)
    cells[half] = "┊" if cells[half] == " " else "┼"
    cells[column(found.value)] = "●"
    return "".join(cells)


def _sample(run: Followed, console: Console, width: int) -> tuple[Text, list[list[Text]]]:
    """The heading with the preference, and the wrapped prompt, policy completion and reference completion."""
    sample = run.sample or {}
    preferred = sample.get("preference")
    verdict = f"P(policy's ≻ reference's) = {preferred:.3f}" if isinstance(preferred, int | float) else "no preference"
    heading = Text(f"last sample, step {clean(sample.get('step', ABSENT))}: {verdict}", style="bold")
    texts = []
    for label, key in (("prompt", "prompt"), ("policy", "first"), ("reference", "second")):
        body = Text(clean(str(sample.get(key, ""))[:MOST_CHARACTERS]) or ABSENT)
        folded = body.wrap(console, max(width - LABEL_WIDTH, 1), overflow="fold")
        texts.append([Text.assemble((f"{label:<{LABEL_WIDTH}}", "dim"), folded[0])])
        texts[-1] += [Text.assemble(" " * LABEL_WIDTH, line) for line in folded[1:]]
    return heading, texts


def _top_of(table: list[Text], count: int) -> list[Text]:
    """The heading and the first rows; the heading shows how many are missing."""
    if count < len(table):
        table[0].append(f"  {count - 1} of {len(table) - 1}", style="dim")
    return table[:count]


def _cut(lines: list[Text], count: int) -> list[Text]:
    """The first lines; the last one shows that there are more."""
    kept = lines[:count]
    if kept and len(lines) > count:
        kept[-1].append("…", style="dim")
    return kept
