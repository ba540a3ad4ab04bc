"""The elements of a JSON list in a file, one by one: the list may be larger than memory."""

import codecs
import re
from collections.abc import Iterator
from itertools import chain
from typing import IO

_CHUNK = 1 << 20
_OUTSIDE = re.compile(rb'"[^"\\]*+"|["\[\]{},]')
"""Structural characters outside of strings, and whole strings without a backslash."""
_INSIDE = re.compile(rb'["\\]')
_KINDS = {b"{": "an object", b'"': "text"}


class ListError(ValueError):
    """Describes the content of a file that is not one list."""


def list_elements(file: IO[bytes], longest: int) -> Iterator[bytes | None]:
    """The undecoded elements of the list in a file; None for one of more than `longest` bytes.

    A blank file yields nothing. Raises ListError, while iterating, for a file that does not hold one list.
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
    """Finds the ends of a list's elements, chunk by chunk."""

    def __init__(self) -> None:
        self.depth = 1
        """The number of open brackets; at 0 the list has ended."""
        self._at, self._quoted = 0, False

    def ends(self, piece: bytes) -> Iterator[int]:
        """The positions of the commas after elements, and of the closing bracket."""
        while self.depth and (found := (_INSIDE if self._quoted else _OUTSIDE).search(piece, self._at)):
            mark, self._at = found[0], found.end()
            if mark == b'"':
                self._quoted = not self._quoted
            elif mark == b"\\":
                self._at += 1  # past the escaped character, which may be in the next chunk
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
    """The element being read, unless it is too large."""

    def __init__(self, longest: int) -> None:
        self._longest, self._held, self._large = longest, bytearray(), False

    def add(self, piece: bytes) -> None:
        """Append to it."""
        self._held += piece if self._held else piece.lstrip()
        if len(self._held) > self._longest + _CHUNK:  # including trailing spaces
            self._held.clear()
            self._large = True

    def ended_by(self, piece: bytes) -> bytes | None:
        """The whole element with its last chunk."""
        self.add(piece)
        content, large = bytes(self._held).rstrip(), self._large
        self._held.clear()
        self._large = False
        return None if large or len(content) > self._longest else content
