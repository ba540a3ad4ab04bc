"""How likely each completion of a pair is to be preferred: a label, or the votes of several people."""

from dataclasses import replace
from statistics import fmean

from alignrun.config import ColumnsConfig
from alignrun.data.values import Row, kind, require_column
from alignrun.errors import InputError
from alignrun.types import Example


def with_label(example: Example, row: Row, columns: ColumnsConfig) -> Example:
    """The pair with its label, turned such that more people prefer `chosen`; a tie keeps its order.

    Raises InputError for a missing column, an unknown vote, or a label that is no number in [0, 1].
    """
    if columns.votes:
        votes = tuple(_vote(row, column, example.origin, columns) for column in columns.votes)
        label = fmean(votes)
    elif columns.label is not None:
        votes, label = (), _label(row, columns.label, example.origin)
    else:
        return example
    if label < 0.5:
        example = replace(example, chosen=example.rejected, rejected=example.chosen)
        votes = tuple(1 - vote for vote in votes)
        # From the votes again, so that two of three votes are the same number whichever side they are for.
        label = fmean(votes) if votes else 1 - label
    return replace(example, label=label, votes=votes)


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
    value = row[column]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= 1):
        found = f"{value:.6g}" if isinstance(value, float) else kind(value)
        raise InputError(f"data: {origin}, column '{column}' is {found}; a label is a number in [0, 1]")
    return float(value)
