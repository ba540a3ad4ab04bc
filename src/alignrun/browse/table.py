"""`alignrun runs`: the runs of folders, a row for each."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from alignrun.browse.entry import RunEntry, read_entry
from alignrun.browse.find import FoundRuns, find_runs, natural
from alignrun.errors import InputError
from alignrun.run.state import State
from alignrun.security.text import clean, counted

ABSENT = "–"
GAP = 2
"""Columns between two cells."""
FOLDER = "runs"
"""Where runs are unless `run.dir` says otherwise."""


@dataclass(frozen=True, slots=True)
class RunColumn:
    """A column: its title, its cell for a run, and what it is sorted by, the first on top."""

    title: str
    cell: Callable[[RunEntry], str]
    order: Callable[[RunEntry], Any]
    """None for a run without a value, which comes last."""


def _measured(
    name: str, sign: int, digits: int
) -> tuple[Callable[[RunEntry], str], Callable[[RunEntry], float | None]]:
    """The cell and the order of a metric; with sign −1 the largest comes first."""

    def cell(run: RunEntry) -> str:
        found = run.measured(name)
        if found is None:
            return ABSENT
        interval = f" ({found.low:.{digits}f}–{found.high:.{digits}f})" if found.low < found.high else ""
        return f"{found.value:.{digits}f}{interval}"

    def order(run: RunEntry) -> float | None:
        found = run.measured(name)
        return None if found is None else sign * found.value

    return cell, order


COLUMNS = {
    "name": RunColumn("name", lambda run: run.name, lambda run: natural(run.name)),
    "algorithm": RunColumn("algorithm", lambda run: run.setting("algo.name"), lambda run: run.setting("algo.name")),
    "model": RunColumn("model", lambda run: run.setting("model.name"), lambda run: run.setting("model.name")),
    "steps": RunColumn("steps", lambda run: f"{run.done}/{run.steps}", lambda run: -run.done),
    "win_rate": RunColumn("win rate", *_measured("win_rate", -1, 2)),
    "accuracy": RunColumn("accuracy", *_measured("accuracy", -1, 2)),
    "kl": RunColumn("KL", *_measured("kl", 1, 2)),
    "state": RunColumn("state", lambda run: _state(run), lambda run: run.state.value),
}
"""The columns by the names that `--sort` takes; accuracy is shown where a run has one."""
NAMES = {"algo": "algorithm", "algo.name": "algorithm", "model.name": "model", "step": "steps"}
"""Other names of columns."""


def show_runs(folders: Sequence[str], sort: str | None, reverse: bool, console: Console) -> int:
    """Print the runs at or below the folders, by default `runs`; returns the exit code.

    Args:
        folders: as typed.
        sort: the name of a column, a key of the configuration, or a metric of evaluations; by default the name.
        reverse: last first.
        console: where they are printed.

    Raises:
        InputError: a folder does not exist, or no run has the key to sort by.
    """
    if not folders and not Path(FOLDER).is_dir():
        raise InputError("alignrun runs: there is no folder runs here: name one, as in `alignrun runs DIR`")
    found = [(Path(folder).expanduser(), find_runs(Path(folder).expanduser())) for folder in folders or [FOLDER]]
    runs = [
        read_entry(path, _name(path, parent, several=len(found) > 1)) for parent, one in found for path in one.folders
    ]
    shown = [name for name in COLUMNS if name != "accuracy" or any(run.measured(name) for run in runs)]
    columns = [COLUMNS[name] for name in shown]
    by = NAMES.get(sort or "name", sort or "name")
    column = COLUMNS.get(by) or _of_key(by, runs)
    if by not in shown:
        columns.insert(-1, column)
    runs = _sorted(runs, column, reverse)
    where = ", ".join(clean(folder) for folder, _ in found)
    if not runs:
        console.print(Text(f"no runs in {where}"), soft_wrap=True)
    for line in _lines(runs, columns, console.width):
        console.print(line, soft_wrap=True)
    if runs:
        counts = Counter(_state(run) for run in runs)
        parts = ", ".join(f"{count} {state}" for state, count in counts.most_common())
        console.print(Text(f"{counted(len(runs), 'run')} in {where}: {parts}", style="dim"), soft_wrap=True)
    for note in _notes([one for _, one in found]):
        console.print(Text(note, style="dim"), soft_wrap=True)
    return 0


def _name(path: Path, parent: Path, *, several: bool) -> str:
    """What a run is called: its path below the folder that was named, or all of it if several were."""
    name = str(path) if several or path == parent else str(path.relative_to(parent))
    return clean(name)


def _state(run: RunEntry) -> str:
    if run.damaged:
        return "damaged"
    return {State.stopped: "stopped", State.unknown: "unknown"}.get(run.state, run.state.value)


def _of_key(key: str, runs: Sequence[RunEntry]) -> RunColumn:
    """A column for a key of the configuration or a metric. Raises InputError if no run has it."""
    if any(key in run.config for run in runs):

        def value(run: RunEntry) -> Any:
            found = run.config.get(key)
            if isinstance(found, int | float):
                return (0, float(found), "") if math.isfinite(found) else None
            return None if found is None else (1, 0.0, str(found))

        return RunColumn(key, lambda run: run.setting(key) or ABSENT, value)
    if any(run.measured(key) for run in runs):
        return RunColumn(key, *_measured(key, 1, 3))
    raise InputError(
        f"alignrun runs: no run has {clean(key, 60)}: sort by {', '.join(COLUMNS)}, a key of the configuration such as "
        "optim.learning_rate, or a metric of evaluations such as length"
    )


def _sorted(runs: Sequence[RunEntry], column: RunColumn, reverse: bool) -> list[RunEntry]:
    """The runs in the order of a column; those without a value come last, either way."""
    known = [run for run in runs if not run.damaged and column.order(run) is not None]
    if column is COLUMNS["name"]:
        known = list(runs)
    known = sorted(known, key=column.order, reverse=reverse)
    return known + [run for run in runs if run not in known]


def _lines(runs: Sequence[RunEntry], columns: Sequence[RunColumn], width: int) -> Iterator[Text]:
    """A heading and the rows; where a row does not fit, the name has a line of its own."""
    if not runs:
        return
    cells = [[column.title for column in columns]]
    cells += [[run.name] if run.damaged else [column.cell(run) for column in columns] for run in runs]
    widths = [max(cell_len(row[place]) for row in cells if len(row) > place) for place in range(len(columns))]
    two = sum(widths) + GAP * (len(widths) - 1) > width
    styles = ["bold", *("" if run.damaged else run.state.style for run in runs)]
    reasons = ["", *(f"damaged: {run.problem}" if run.damaged else run.problem for run in runs)]
    for row, style, reason in zip(cells, styles, reasons, strict=True):
        start = 1 if two else 0
        if two:
            yield Text(row[0], style="bold")
        if len(row) > start:
            padded = [cell + " " * (widths[place] - cell_len(cell)) for place, cell in enumerate(row)][start:]
            line = Text(" " * GAP if two else "")
            line.append((" " * GAP).join(padded[:-1]), style="bold" if style == "bold" else "")
            line.append(f"{' ' * GAP if len(padded) > 1 else ''}{padded[-1].rstrip()}", style=style)
            line.rstrip()
            yield line
        if reason:
            yield Text(f"{' ' * GAP}{clean(reason, 300)}", style="red")


def _notes(found: Sequence[FoundRuns]) -> Iterator[str]:
    total = FoundRuns()
    for one in found:
        total.tournaments += one.tournaments
        total.evaluations += one.evaluations
        total.links += one.links
        total.left += one.left
    return total.notes()
