"""`alignrun diff`: how two runs differ in their configuration, their inputs, their environment and their results."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from alignrun.browse.entry import RunEntry, dotted, open_entry
from alignrun.errors import InputError
from alignrun.evaluation.results import Estimate
from alignrun.reports.quantities import in_order, with_intervals
from alignrun.run.directory import RunDirectory
from alignrun.security.files import read_json
from alignrun.security.text import clean, counted, visible

ABSENT = "–"
OWN = ("run.dir", "started", "command")
"""What differs between any two runs."""
SHOWN = 160
"""The characters shown of a value; of a longer one, those around the first difference."""

Values = Mapping[str, Any]


def show_diff(first: str, second: str, everything: bool, console: Console) -> int:
    """Print what differs between two runs; returns the exit code.

    Args:
        first: the folder of a run.
        second: that of another.
        everything: also print what is the same.
        console: where it is printed.

    Raises:
        InputError: one of them is not a run, or is damaged.
    """
    paths = [Path(name).expanduser() for name in (first, second)]
    names = [path.absolute().name for path in paths]
    if names[0] == names[1]:
        names = [first, second]
    one, other = (open_entry(path, clean(name)) for path, name in zip(paths, names, strict=True))
    one_digests, other_digests = (_digests(RunDirectory(path)) for path in paths)
    one_place, other_place = (_environment(RunDirectory(path)) for path in paths)
    for title, left, right in (
        ("configuration", one.config, other.config),
        ("inputs", one_digests, other_digests),
        ("environment", one_place, other_place),
    ):
        _print(console, title, (one.name, other.name), list(_rows(left, right)), everything)
    _print(console, "results", (one.name, other.name, "difference"), list(_results(one, other)), everything)
    for run in (one, other):
        console.print(Text(f"{run.name}: {_progress(run)}", style="dim"), soft_wrap=True)
    return 0


def _progress(run: RunEntry) -> str:
    text = f"{run.done} of {counted(run.steps, 'step')}, {run.state.value}"
    if run.evaluated is None:
        return f"{text}, not evaluated"
    return text if run.evaluated == run.steps else f"{text}; results of step {run.evaluated}"


def _print(
    console: Console, title: str, names: tuple[str, ...], rows: list[tuple[bool, list[str]]], everything: bool
) -> None:
    """A table of the rows that differ, each marked by whether it does, or of all."""
    differing = sum(differs for differs, _ in rows)
    same = len(rows) - differing
    if not rows or (not differing and not everything):
        what = "the same" if rows else "none"
        console.print(Text.assemble((f"{title}: ", "bold"), what))
        return
    table = Table(
        Column(Text(title), overflow="fold"),
        *(Column(Text(name), overflow="fold") for name in names),
        box=None,
        header_style="bold",
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for differs, cells in rows:
        if differs or everything:
            table.add_row(*(Text(cell, style="" if differs else "dim") for cell in cells))
    console.print(table, highlight=False)
    if same and not everything:
        console.print(Text(f"and {same:,} the same (--all shows them)", style="dim"))


def _rows(one: Values, other: Values) -> Iterator[tuple[bool, list[str]]]:
    for key in [*one, *(key for key in other if key not in one)]:
        if key in OWN:
            continue
        differs = (key in one, one.get(key)) != (key in other, other.get(key))
        yield differs, [clean(key, 80), *_as_text([key in one, key in other], [one.get(key), other.get(key)])]


def _as_text(known: list[bool], values: list[Any]) -> list[str]:
    """Two values as texts that a reader can tell apart."""
    plain = [clean(value if isinstance(value, str) else json.dumps(value, default=str)) for value in values]
    if plain[0] == plain[1] and values[0] != values[1]:  # a number and a text, or white space
        plain = [visible(json.dumps(value, default=str)) for value in values]
    differ = next((n for n, pair in enumerate(zip(*plain, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, differ - SHOWN // 2) if max(map(len, plain)) > SHOWN else 0
    cut = [f"{'…' if start else ''}{text[start:][:SHOWN]}{'…' if text[start + SHOWN :] else ''}" for text in plain]
    return [text if there else ABSENT for text, there in zip(cut, known, strict=True)]


def _results(one: RunEntry, other: RunEntry) -> Iterator[tuple[bool, list[str]]]:
    left, right = (with_intervals({k: v for k, v in run.metrics.items() if k != "step"}) for run in (one, other))
    for name in in_order({**left, **right}):
        a, b = left.get(name), right.get(name)
        change = b.value - a.value if a and b else math.nan
        shown = f"{change:+.4g}" if math.isfinite(change) else ABSENT
        yield _differ(a, b), [clean(name, 80), _measured(a), _measured(b), shown]


def _differ(one: Estimate | None, other: Estimate | None) -> bool:
    if one is None or other is None:
        return True
    both = zip((one.value, one.low, one.high), (other.value, other.low, other.high), strict=True)
    return any(a != b and not (math.isnan(a) and math.isnan(b)) for a, b in both)


def _measured(found: Estimate | None) -> str:
    if found is None:
        return ABSENT
    if math.isnan(found.value):
        return "not finite"
    return f"{found.value:.4g}" + (f" ({found.low:.3g} to {found.high:.3g})" if found.low < found.high else "")


def _digests(run: RunDirectory) -> Values:
    """The digests of a run's inputs, as they were when it started; a few characters of each are enough to compare."""
    parts = _object(run.pins_file).get("parts")
    return {str(name): str(digest)[:12] for name, digest in parts.items()} if isinstance(parts, dict) else {}


def _environment(run: RunDirectory) -> Values:
    return dict(dotted(_object(run.environment_file)))


def _object(file: Path) -> dict[str, Any]:
    """A JSON object in a run; empty if there is none. Raises InputError if it is damaged."""
    if not file.exists():
        return {}
    found = read_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{file} cannot be read (it is not an object)")
    return found
