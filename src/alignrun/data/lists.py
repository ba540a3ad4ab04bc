"""The elements of a JSON list in a file, one by one: together they may be larger than memory."""

import codecs
import re
from collections.abc import Iterator
from itertools import chain
from typing import IO

_CHUNK = 1 << 20
_OUTSIDE = re.compile(rb'"[^"\\]*+"|["\[\]{},]')
"""What structures JSON outside of texts, and whole texts without a backslash."""
_INSIDE = re.compile(rb'["\\]')
_KINDS = {b"{": "an object", b'"': "text"}


class ListError(ValueError):
    """Says what a file holds, which is not one list."""


def list_elements(file: IO[bytes], longest: int) -> Iterator[bytes | None]:
    """What stands between the commas of the list in a file, not decoded; None for more bytes of it than `longest`.

    A file of spaces yields nothing. Raises ListError, while iterating, for a file that does not hold one list.
    """
    pieces = iter(lambda: file.read(_CHUNK), b"")
    first = next(pieces, b"").removeprefix(codecs.BOM_UTF8)
    first = next((piece for piece in map(bytes.lstrip, chain([first], pieces)) if piece), b"[]")
    if not first.startswith(b"["):
        raise ListError(_KINDS.get(first[:1], "no list in UTF-8"))
    scan, element, empty = _Scan(), _Element(longest), True
    for piece in chain([first[1:]], pieces):
        start = 0
        for end in scan.ends(piece):
            content = element.ended_by(piece[start:end])
            if scan.depth or content != b"" or not empty:
                yield content
            start, empty = end + 1, False
        if scan.depth:
            element.add(piece[start:])
        elif piece[start:].strip():
            raise ListError("more than one list")
    if scan.depth:
        raise ListError("a list that does not end")


class _Scan:
    """Finds where the elements of a list end, in one piece of it after another."""

    def __init__(self) -> None:
        self.depth = 1
        """Brackets that are open; the list has ended at none."""
        self._at, self._quoted = 0, False

    def ends(self, piece: bytes) -> Iterator[int]:
        """The places of the commas behind elements, and of the bracket behind the last."""
        while self.depth and (found := (_INSIDE if self._quoted else _OUTSIDE).search(piece, self._at)):
            mark, self._at = found[0], found.end()
            if mark == b'"':
                self._quoted = not self._quoted
            elif mark == b"\\":
                self._at += 1  # past what it escapes, which may be in the next piece
            elif mark in (b"[", b"{"):
                self.depth += 1
            elif mark in (b"]", b"}"):
                self.depth -= 1
                if not self.depth:
                    if mark == b"}":
                        raise ListError("a list that ends in }")
                    yield found.start()
            elif mark == b"," and self.depth == 1:
                yield found.start()
        self._at = max(self._at - len(piece), 0)


class _Element:
    """The element that is being read, as long as it is not too large."""

    def __init__(self, longest: int) -> None:
        self._longest, self._held, self._large = longest, bytearray(), False

    def add(self, piece: bytes) -> None:
        """Some more of it."""
        self._held += piece if self._held else piece.lstrip()
        if len(self._held) > self._longest + _CHUNK:  # with the spaces behind it
            self._held.clear()
            self._large = True

    def ended_by(self, piece: bytes) -> bytes | None:
        """All of it with its last piece."""
        self.add(piece)
        content, large = bytes(self._held).rstrip(), self._large
        self._held.clear()
        self._large = False
        return None if large or len(content) > self._longest else content
