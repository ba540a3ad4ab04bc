"""The scores of one conversation in the answers of servers of reward models."""

import json
from typing import Any

MOST = 3e38
"""Scores are float32."""


def scores_in(body: Any, listed: str, names: tuple[str, ...]) -> list[float]:
    """The scores of the one result in an answer; the last ones if there are scores for every token.

    Args:
        body: the JSON of the answer, an object or a list of results.
        listed: the field with an object's list of results, unless the object is the result.
        names: the possible names of the score in a result; the first one present is used.

    Raises:
        ValueError: there is not exactly one result, or a score is not a finite number; says which.
    """
    found = body.get(listed, body) if isinstance(body, dict) else body
    if isinstance(found, list):
        if len(found) != 1:
            raise ValueError(f"{len(found)} results to one question")
        (found,) = found
    value = next((found[name] for name in names if name in found), None) if isinstance(found, dict) else None
    if value is None:
        raise ValueError(f"without '{names[0]}'")
    values = value if isinstance(value, list) else [value]
    if values and isinstance(values[-1], list):
        values = values[-1]
    if not is_scores(values):
        raise ValueError("a score that is not a finite number")
    return [float(one) for one in values]


def is_scores(values: Any) -> bool:
    """Whether these are one or more finite numbers."""
    return (
        isinstance(values, list)
        and bool(values)
        and all(type(one) in (int, float) and abs(one) <= MOST for one in values)  # NaN is not
    )


def stored_scores(text: str) -> list[float] | None:
    """Scores from the cache; None if garbled."""
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return [float(one) for one in values] if is_scores(values) else None
