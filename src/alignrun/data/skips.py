"""Rows that are left out, by what is wrong with them."""

import re
from collections.abc import Mapping

_NUMBER = re.compile(r"\d+")


class Skips:
    """Counts reasons, of which those that differ in the row or in a number alone are one."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, message: str, origin: str) -> None:
        """Count a row that is left out, with the line that refuses it."""
        message = message.removeprefix("data: ")
        reason = _NUMBER.sub("#", message.replace(origin, ""))
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._first.setdefault(reason, message)

    def __len__(self) -> int:
        return sum(self._counts.values())

    def by_reason(self) -> Mapping[str, int]:
        """The line of the first row of each reason, and how many rows it holds for; the most frequent first."""
        order = sorted(self._counts, key=lambda reason: -self._counts[reason])
        return {self._first[reason]: self._counts[reason] for reason in order}
