"""The labelled pairs that a preference is asked about."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignrun.config import JudgedRows, PreferenceEvaluationConfig
from alignrun.data.loading import Ordered, load_examples, load_in_order, remarks, unusable
from alignrun.data.shapes import CATEGORIES, category_column, recognised
from alignrun.data.store import Examples, Kind, first_below
from alignrun.errors import InputError
from alignrun.preferences.base import PreferenceKind
from alignrun.security.text import clean, counted
from alignrun.types import Example

MISSING = "(none)"
"""The category of a row without one."""


@dataclass(frozen=True, slots=True)
class PairQuestions:
    """N pairs."""

    examples: Sequence[Example]
    categories: Sequence[str] | None
    """[N] the category of each; None if they have none."""
    column: str | None
    """The column of the categories."""
    notes: tuple[str, ...]


def read_pairs(
    config: PreferenceEvaluationConfig, kind: PreferenceKind, report: Callable[[str], None]
) -> PairQuestions:
    """The pairs of the data, as configured. Raises InputError for rows that are not pairs, and a missing column."""
    data, shape = recognised(config.data)
    if shape:
        report(f"data: read as {shape}'s columns; set data.columns to read them otherwise")
    read = kind.columns(config.preference)
    wanted = None if read is None else {*read, *([config.category] if config.category else CATEGORIES)}
    loaded = load_in_order(data, wanted) if config.rows is JudgedRows.all else load_examples(data, wanted)
    found = loaded.examples if isinstance(loaded, Ordered) else loaded.heldout
    for line in remarks(loaded):
        report(line)
    if (example := first_below(found, Kind.tie)) is not None:
        raise InputError(
            f"data: {example.origin} holds no pair of answers: name data.columns.chosen and data.columns.rejected, or "
            "choose another data set"
        )
    examples, sampled = _drawn(found, config)
    column = config.category or category_column({name for example in examples for name in example.columns or {}})
    values = [clean((example.columns or {}).get(str(column), MISSING)) for example in examples]
    if config.category and set(values) == {MISSING}:
        raise InputError(f"category={config.category}: no row has this column: name another, or leave it out")
    # A column that nobody has named may say something else in every row.
    most = len(values) if config.category else len(values) // 2
    sorted_into = 1 < len(set(values)) <= most
    return PairQuestions(
        _for_preference(examples, read), values if sorted_into else None, column, (*unusable(loaded), *sampled)
    )


def _drawn(found: Examples, config: PreferenceEvaluationConfig) -> tuple[list[Example], tuple[str, ...]]:
    """All of the pairs, or as many as asked for."""
    if config.pairs is None or config.pairs >= len(found):
        return list(found), ()
    rows = np.random.default_rng(config.seed).choice(len(found), config.pairs, replace=False)
    note = f"{counted(config.pairs, 'pair')} of {len(found):,}, drawn at random (seed={config.seed})."
    return [found[int(row)] for row in sorted(rows)], (note,)


def _for_preference(examples: list[Example], read: Collection[str] | None) -> list[Example]:
    """Without the columns that were read for the categories alone: a preference sees what it sees in training."""
    if read is None:
        return examples
    return [
        replace(one, columns={name: value for name, value in (one.columns or {}).items() if name in read} or None)
        for one in examples
    ]
