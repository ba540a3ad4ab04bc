"""How good a policy, or a feedback model, is by one number."""

from collections.abc import Mapping
from typing import Any

MERITS = (("win_rate", 1), ("accuracy", 1), ("loss", -1))
"""What an evaluation is judged by: the first that there is, times its sign the larger the better."""


def merit(metrics: Mapping[str, Any]) -> float | None:
    """How good a policy, or a feedback model, is by its evaluation; None where nothing was measured."""
    values = (sign * metrics[name] for name, sign in MERITS if isinstance(metrics.get(name), float))
    return next(values, None)


def merit_of_row(row: Mapping[str, Any]) -> float | None:
    """The same of a row of metrics.jsonl, in which an evaluation stands under `eval/`."""
    return merit({name.removeprefix("eval/"): row[name] for name in row if name.startswith("eval/")})
