"""Scores of texts that depend on the texts alone: each is computed once and cached.

Slow ones are computed in several processes, also while the next completions are being decoded.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.preferences.base import identity
from alignrun.preferences.worker import Compute, Task, Texts, by_row
from alignrun.preferences.workers import workers

KEPT = 1 << 16
"""The number of cached scores, in about 10 MiB; the least recently used ones are dropped first."""
PAYS = 0.05
"""The smallest CPU time, in seconds, that is worth distributing over processes."""

TextRow = tuple[str, ...]


class TextScores:
    """[B] float64 scores of B prompts, each with its completions.

    A value depends neither on other questions nor on the process that computes it.
    """

    def __init__(self, compute: Compute, task: Task) -> None:
        """`task` builds the same as `compute` in another process."""
        self._here, self._task = compute, task
        self._known: dict[bytes, float] = {}
        self._coming: dict[bytes, tuple[Future[Sequence[float] | None], int]] = {}
        self._pace = 0.0
        """Seconds of CPU time for each character of the completions, as last measured."""

    @classmethod
    def by_row(cls, function: Callable[..., float]) -> "TextScores":
        """From a module-level function of a prompt's text and its completions."""
        path = f"{function.__module__}:{function.__name__}"
        return cls(by_row(function), ("alignrun.preferences.worker:by_row_of", (path,)))

    def __call__(self, *texts: Sequence[str]) -> Tensor:
        """The scores; each different row is computed once."""
        keys, rows = _by_content(texts)
        found = {key: self._known.pop(key) for key in rows if key in self._known}
        for key in rows.keys() & self._coming.keys():
            future, place = self._coming[key]
            if (scores := future.result()) is not None:
                found[key] = scores[place]
        self._coming.clear()
        if missing := {key: row for key, row in rows.items() if key not in found}:
            found |= zip(missing, self._compute(list(missing.values())), strict=True)
        self._known |= {key: found[key] for key in rows}
        for key in list(self._known)[: max(0, len(self._known) - KEPT)]:
            del self._known[key]
        return torch.tensor([found[key] for key in keys], dtype=torch.float64)

    def expect(self, *texts: Sequence[str]) -> None:
        """Start on rows that will be needed, in other processes, if worthwhile."""
        _, rows = _by_content(texts)
        missing = {key: row for key, row in rows.items() if key not in self._known and key not in self._coming}
        if distributed.size() > 1 or not missing or not self._pays(list(missing.values())):
            return
        others = workers()
        for turn, worker in enumerate(others):
            keys = list(missing)[turn :: len(others)]
            future = worker.ask(self._task, _columns([missing[key] for key in keys]))
            self._coming |= {key: (future, place) for place, key in enumerate(keys)}

    def _pays(self, rows: Sequence[TextRow]) -> bool:
        return self._pace * _size(rows) >= PAYS

    def _compute(self, rows: Sequence[TextRow]) -> Sequence[float]:
        if distributed.size() > 1:  # data-parallel processes already share the cores and must stay in step
            shares = distributed.by_share(len(rows), lambda share: self._compute_here([rows[row] for row in share]))
            scores: list[float] = shares.tolist()
            return scores
        others = workers() if self._pays(rows) else ()
        parts = [rows[turn :: len(others) + 1] for turn in range(len(others) + 1)]
        asked = [
            worker.ask(self._task, _columns(part)) if part else None
            for worker, part in zip(others, parts[1:], strict=True)
        ]
        found = [0.0] * len(rows)
        found[:: len(parts)] = self._compute_here(parts[0]).tolist()
        for turn, (future, part) in enumerate(zip(asked, parts[1:], strict=True), start=1):
            if future is not None:
                theirs = future.result()
                found[turn :: len(parts)] = self._compute_here(part).tolist() if theirs is None else theirs
        return found

    def _compute_here(self, rows: Sequence[TextRow]) -> Tensor:
        started = time.thread_time()
        scores = torch.tensor(list(self._here(_columns(rows))), dtype=torch.float64)
        self._pace = (time.thread_time() - started) / _size(rows)
        return scores


def _columns(rows: Sequence[TextRow]) -> Texts:
    return list(zip(*rows, strict=True))


def _size(rows: Sequence[TextRow]) -> int:
    """Characters of the completions, at least one."""
    return sum(len(text) for row in rows for text in row[1:]) or 1


def _by_content(texts: Texts) -> tuple[list[bytes], dict[bytes, TextRow]]:
    """The key of every row, and the distinct rows by key."""
    rows = list(zip(*texts, strict=True))
    keys = list(map(_key, rows))
    return keys, dict(zip(keys, rows, strict=True))


def _key(row: TextRow) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in (identity(row[0]), *row[1:]):
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()
