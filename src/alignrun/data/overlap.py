"""Finds held-out prompts that are also trained on, exactly or nearly."""

from array import array
from collections.abc import Sequence

import numpy as np

from alignrun.security.text import counted
from alignrun.types import Example

_NAMED = 3
_SPACES = b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"
_LOWER = bytes(range(256)).lower()


class Seen:
    """The training prompts as 64-bit hashes: a collision among a million has probability 1 in 30 million."""

    def __init__(self) -> None:
        self._texts, self._plain = array("q"), array("q")

    def add(self, text: str) -> None:
        """Add a training prompt."""
        self._texts.append(hash(text))
        self._plain.append(_plain(text))

    def notes(self, heldout: Sequence[Example]) -> list[str]:
        """A line for the held-out prompts that are trained on, and one for those that differ only in case or spaces.

        Iterates over `heldout` once.
        """
        origins: list[str] = []
        texts, plain = array("q"), array("q")
        for example in heldout:
            text = example.text
            origins.append(example.origin)
            texts.append(hash(text))
            plain.append(_plain(text))
        same = np.isin(texts, self._texts)
        alike = np.isin(plain, self._plain) & ~same
        kinds = ((same, "are trained on too"), (alike, "differ from one that is trained on in case or spaces alone"))
        return [
            f"{len(rows)} of {counted(len(origins), 'held-out prompt')} {what}: "
            + ", ".join(origins[row] for row in rows[:_NAMED])
            + (", ..." if len(rows) > _NAMED else "")
            for found, what in kinds
            if len(rows := np.flatnonzero(found))
        ]


def _plain(text: str) -> int:
    """The hash of a text, ignoring case and spaces."""
    if text.isascii():
        return hash(text.encode().translate(_LOWER, _SPACES))  # the same, several times faster
    return hash("".join(text.casefold().split()).encode("utf-8", "surrogatepass"))
