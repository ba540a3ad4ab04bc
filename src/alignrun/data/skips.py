"""Counts skipped rows by reason."""

import re
from collections.abc import Mapping

_NUMBER = re.compile(r"\d+")


class Skips:
    """Counts reasons; those that differ only in the row or in a number are the same."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, message: str, origin: str) -> None:
        """Count a skipped row, with its error message."""
        message = message.removeprefix("data: ")
        reason = _NUMBER.sub("#", message.replace(origin, ""))
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._first.setdefault(reason, message)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def by_reason(self) -> Mapping[str, int]:
        """The first row's message for each reason, and the number of rows; the most frequent first."""
        order = sorted(self._counts, key=lambda reason: -self._counts[reason])
        return {self._first[reason]: self._counts[reason] for reason in order}
