"""The quality of a policy, or a feedback model, as one number."""

from collections.abc import Mapping
from typing import Any

MERITS = (("win_rate", 1), ("accuracy", 1), ("loss", -1))
"""Metrics that rank evaluations, with their signs: the first one present counts; larger after the sign is better."""


def merit(metrics: Mapping[str, Any]) -> float | None:
    """The merit of an evaluation, larger is better; None if it has none of the metrics."""
    values = (sign * metrics[name] for name, sign in MERITS if isinstance(metrics.get(name), float))
    return next(values, None)


def merit_of_row(row: Mapping[str, Any]) -> float | None:
    """The merit of a row of metrics.jsonl, where evaluation metrics have the prefix `eval/`."""
    return merit({name.removeprefix("eval/"): row[name] for name in row if name.startswith("eval/")})
