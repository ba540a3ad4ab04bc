"""Markdown tables of estimates with their intervals."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignrun.errors import InputError
from studies.bootstrap import interval
from studies.methods import METHODS
from studies.records import read
from studies.sweep import HELD_OUT

Value = TypeVar("Value")

CAVEAT = """\
Intervals are 95% bootstraps over prompts and seeds. With three seeds or fewer they are too narrow; with one they leave
out how runs differ. None is corrected for the number of comparisons."""
"""What every page says of its intervals."""

SMALL = 6
"""The most rows of a matrix that shows its intervals."""
Records = Mapping[str, Sequence[Mapping[str, Any]]]
"""method → the files of its runs, by seed."""


def records_in(results: Path) -> Records:
    """The measurements of a folder, with the methods in the order of METHODS.

    Raises InputError for measurements of a method that is no longer, or that is now trained otherwise.
    """
    files = [read(path) for path in sorted(results.glob("*-*.json"))]
    for file in files:
        method = METHODS.get(file["method"])
        if method is None or list(method.overrides) != file["overrides"]:
            raise InputError(f"{results} has measurements of another {file['method']} than today's: measure it again")
    records = {name: [file for file in files if file["method"] == name] for name in METHODS}
    return {name: found for name, found in records.items() if found}


def compared(by_method: Mapping[str, Value]) -> dict[str, Value]:
    """Those of the methods that are compared: not of the best responses to one of them."""
    return {name: one for name, one in by_method.items() if METHODS[name].against is None}


def next_to(results: Path, suffix: str) -> Path:
    """The file of that name next to a folder of measurements."""
    return results.parent / f"{results.name}{suffix}"


def shown(*terms: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> str:
    """A sum of means with its interval."""
    value, low, high = interval(*terms, weights=weights)
    return f"{value:z.3f} ({low:z.3f} to {high:z.3f})"


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*columns: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield row(*columns)
    yield "|---" * len(columns) + "|"


def between_methods(methods: Iterable[str], between: Callable[[str, str], NDArray[np.float64]]) -> Iterator[str]:
    """P(row ≻ column) between methods, with its heading."""
    yield "## Against each other"
    yield ""
    yield "P(row ≻ column), bold where the interval leaves out ½."
    yield ""
    yield from matrix({name: METHODS[name].label for name in methods}, between)


def matrix(labels: Mapping[str, str], between: Callable[[str, str], NDArray[np.float64]]) -> Iterator[str]:
    """P(row ≻ column) between those that have a label; bold where the interval leaves out ½.

    The intervals of a small table are shown. `between` is asked once per pair, since P(b ≻ a) = 1 − P(a ≻ b).
    """
    found = {}
    for first, second in combinations(labels, 2):
        value, low, high = interval(between(first, second))
        found[first, second], found[second, first] = (value, low, high), (1 - value, 1 - high, 1 - low)
    yield from head("", *labels.values())
    for name, label in labels.items():
        cells = []
        for other in labels:
            if name == other:
                cells.append("")
                continue
            value, low, high = found[name, other]
            apart = f"**{value:z.3f}**" if low > 0.5 or high < 0.5 else f"{value:z.3f}"
            cells.append(f"{apart} ({low:z.3f} to {high:z.3f})" if len(labels) <= SMALL else apart)
        yield row(label, *cells)


def held_out(records: Records) -> Iterator[str]:
    """How often completions have more of a measure that no method sees than those of μ, with its heading."""
    yield "## By measures that no method saw"
    yield ""
    yield "How often a completion takes up more of the prompt's words (relevance), or has a richer vocabulary"
    yield "(diversity), than one of μ."
    yield ""
    yield from head("", *HELD_OUT)
    for name, files in records.items():
        cells = (shown(np.array([file["held_out"][measure] for file in files])) for measure in HELD_OUT)
        yield row(METHODS[name].label, *cells)


def cost(records: Records) -> str:
    """How long the runs were, in a sentence."""
    files = [file for found in records.values() for file in found]
    steps = sorted({file["steps"] for file in files})
    hours = sum(file["seconds"] for file in files) / 3600
    return f"Steps of a run: {', '.join(map(str, steps))}. Summed over the runs, the steps took {hours:.1f} hours."
