"""Work in pieces that fit the memory: when it runs out, they become half as large, and stay so."""

from collections.abc import Callable
from typing import TypeVar

import torch

from alignrun import distributed
from alignrun.models.device import release_memory
from alignrun.security.text import counted

Result = TypeVar("Result")


class Pieces:
    """How many rows a piece of some work may have.

    Args:
        size: rows; None takes all at once.
        doing: the work, as `sampling`.
        key: the configuration key of the size.
        unchanged: what does not depend on the size, as `no gradient`.
        note: prints that memory ran out and pieces became smaller.
        processes: among which the rows of the key are divided.
    """

    def __init__(
        self,
        size: int | None,
        doing: str,
        key: str,
        unchanged: str,
        note: Callable[[str], None] = lambda _: None,
        processes: int = 1,
    ) -> None:
        self.size, self.note = size, note
        self._doing, self._key, self._unchanged, self._processes = doing, key, unchanged, processes

    def that_fit(self, rows: int, work: Callable[[int], Result]) -> Result:
        """Call `work` with the rows of a piece, again with half of them after it has run out of memory.

        With a sharded base this is impossible, since all processes must run equally many passes.

        Args:
            rows: of the whole work.
            work: all of it, in pieces of the given number of rows.

        Raises:
            torch.OutOfMemoryError: a single row does not fit, or the base is sharded.
        """
        while True:
            size = min(self.size or rows, rows)
            try:
                return work(size)
            except torch.OutOfMemoryError:
                if size <= 1 or distributed.sharded():
                    raise
            # Outside the handler: its traceback keeps the tensors of the work alive.
            self.size = (size + 1) // 2
            release_memory()
            self.note(
                f"out of memory {self._doing} {counted(size, 'prompt')}: continuing with {self.size}, which changes "
                f"{self._unchanged} ({self._key}={self.size * self._processes} saves the attempt)"
            )
