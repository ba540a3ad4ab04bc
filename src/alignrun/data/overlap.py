"""Held-out prompts that training has seen, or nearly so."""

from collections.abc import Sequence

from alignrun.security.text import counted
from alignrun.types import Example

_NAMED = 3


def overlap_notes(train: Sequence[Example], heldout: Sequence[Example]) -> list[str]:
    """A line for the held-out prompts that are trained on, and one for those that differ in case or spaces alone."""
    seen = {example.text for example in train}
    alike = {_plain(text) for text in seen}
    same = [example.origin for example in heldout if example.text in seen]
    variants = [example.origin for example in heldout if example.text not in seen and _plain(example.text) in alike]
    kinds = ((same, "are trained on too"), (variants, "differ from one that is trained on in case or spaces alone"))
    return [
        f"{len(rows)} of {counted(len(heldout), 'held-out prompt')} {what}: {', '.join(rows[:_NAMED])}"
        + (", ..." if len(rows) > _NAMED else "")
        for rows, what in kinds
        if rows
    ]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
