"""Processes that score texts on idle cores."""

import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache

from alignrun.preferences.worker import Task, Texts

MOST = 8
"""The maximum number of processes."""


class Worker:
    """One process, started on first use in its own thread, so that nothing waits for it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alignrun-scores")
        self.process: subprocess.Popen[bytes] | None = None
        """None until first use."""
        self._lost = False

    def ask(self, task: Task, texts: Texts) -> "Future[Sequence[float] | None]":
        """A future score per row; None if they must be computed elsewhere."""
        return self._thread.submit(self._ask, task, texts)

    def close(self) -> None:
        """End the process; later requests are not answered."""
        self._lost = True
        self._thread.shutdown()
        if self.process is not None:
            _end(self.process)

    def _ask(self, task: Task, texts: Texts) -> Sequence[float] | None:
        if self._lost:
            return None
        try:
            content = pickle.dumps((task, texts))
        except Exception:  # a row's columns may be objects of any library
            return None
        try:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(content)
            process.stdin.flush()
            found: list[float] | None = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.PickleError):
            self._lost = True
            return None
        return found if found is not None and len(found) == len(texts[0]) else None

    def _started(self) -> "subprocess.Popen[bytes]":
        if self.process is None:
            # Not multiprocessing: it would run the user's script again, and its processes outlive a killed parent.
            command = [sys.executable, "-P", "-m", "alignrun.preferences.worker"]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            weakref.finalize(self, _end, self.process)
        return self.process


def _end(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()


@cache
def workers() -> tuple[Worker, ...]:
    """One per core available to this process, except one; none on a single core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return tuple(Worker() for _ in range(min(MOST, cores - 1)))
