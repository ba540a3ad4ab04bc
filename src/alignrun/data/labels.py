"""The probability that each completion of a pair is preferred: from a label or several people's votes."""

import json
from dataclasses import replace
from statistics import fmean
from typing import Any

from alignrun.config import ColumnsConfig
from alignrun.data.columns import LIKED
from alignrun.data.values import Row, kind, require_column
from alignrun.errors import InputError
from alignrun.types import Example


def with_label(example: Example, row: Row, columns: ColumnsConfig) -> Example:
    """The pair with its label, ordered such that more people prefer `chosen`; a tie keeps its order.

    Raises InputError for a missing column, an unknown vote, or a label that is not a number in [0, 1].
    """
    if columns.votes:
        votes = tuple(_vote(row, column, example.origin, columns) for column in columns.votes)
        label = fmean(votes)
    elif columns.label is not None:
        votes, label = (), _label(row, columns.label, example.origin)
    elif row.get("label") is not None and "label" not in columns.ignored:
        raise InputError(
            f"data: {example.origin} has a column 'label', which is not read: it may say which completion is better: "
            "name it with data.columns.label=label, or ignore it with data.columns.ignored=[label]"
        )
    else:
        return example
    if label < 0.5:
        example = replace(
            example,
            chosen=example.rejected,
            rejected=example.chosen,
            chosen_turns=example.rejected_turns,
            rejected_turns=example.chosen_turns,
        )
        votes = tuple(1 - vote for vote in votes)
        # Recomputed from the votes, so that two of three votes give the same number for either side.
        label = fmean(votes) if votes else 1 - label
    return replace(example, label=label, votes=votes)


def check_liked(row: Row, columns: ColumnsConfig, origin: str) -> None:
    """Raise InputError for a completion that people did not like: it is not a demonstration.

    Its label is a boolean, 0 or 1, in the configured column, or else in `label` or `kto_tag`.
    """
    column = columns.label or next((name for name in LIKED if name in row), LIKED[0])
    if columns.label is not None:
        require_column(row, "label", column, origin)
    label = row.get(column)
    if isinstance(label, str):  # as in a CSV file
        label = {"true": True, "1": True, "false": False, "0": False}.get(label.lower(), label)
    if label is None or column in columns.ignored or (isinstance(label, (int, float)) and label == 1):
        return
    if isinstance(label, (int, float)) and label == 0:
        raise InputError(
            f"data: {origin} has a completion that people did not like (column '{column}' is {json.dumps(label)}), and "
            "nothing learns from such a row by itself: algo=sft takes the liked ones, and algo=dpo pairs of chosen and "
            "rejected"
        )
    raise InputError(
        f"data: {origin}, column '{column}' is {kind(label)}; of a completion it must be true or false: correct it, or "
        f"ignore it with data.columns.ignored=[{column}]"
    )


def _vote(row: Row, column: str, origin: str, columns: ColumnsConfig) -> float:
    require_column(row, "votes", column, origin)
    values = {columns.vote_chosen: 1.0, columns.vote_rejected: 0.0, columns.vote_tie: 0.5}
    spelling = str(row[column])
    if spelling not in values:
        raise InputError(
            f"data: {origin}, column '{column}' holds the unknown vote {spelling[:40]!r} (known: {', '.join(values)}); "
            "spell the votes with data.columns.vote_chosen, vote_rejected and vote_tie"
        )
    return values[spelling]


def _label(row: Row, column: str, origin: str) -> float:
    require_column(row, "label", column, origin)
    value = _number(row[column])
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= 1):
        found = f"{value:.6g}" if isinstance(value, float) else kind(value)
        raise InputError(f"data: {origin}, column '{column}' is {found}; a label is a number in [0, 1]")
    return float(value)


def _number(value: Any) -> Any:
    """A number written as text, as in a CSV file, as a number; other values unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
