"""A process that scores texts for a run: `python -m alignrun.preferences.worker`, without torch.

It reads pickled requests from its parent's pipe and ends with it: when the parent is gone, the pipe is closed.
"""

import importlib
import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, BinaryIO

Texts = Sequence[Sequence[str]]
"""Prompts, and one or two completions of each."""

Compute = Callable[[Texts], Sequence[float]]
"""A score for each row."""

Task = tuple[str, tuple[Any, ...]]
"""How to build a `Compute`: `module:name` of its factory, and the arguments."""


def by_row(function: Callable[..., float]) -> Compute:
    """Scores by a function of a prompt and its completions."""
    return lambda texts: [function(*row) for row in zip(*texts, strict=True)]


def by_row_of(path: str) -> Compute:
    """The same, from the import path of the function."""
    return by_row(import_by_path(path))


def import_by_path(path: str) -> Any:
    """The object at `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def make(task: Task) -> Compute:
    """The `Compute` of a task."""
    maker, arguments = task
    made: Compute = import_by_path(maker)(*arguments)
    return made


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the pipe closes; a failing one gets None, and the parent repeats and reports it."""
    while True:
        try:
            task, texts = pickle.load(requests)
        except EOFError:
            return
        found = None
        with suppress(Exception):  # the user's code may raise anything
            found = list(make(task)(texts))
        pickle.dump(found, answers)
        answers.flush()


def main() -> None:
    """Serve the parent; functions' output goes to standard error, and the parent handles signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(BrokenPipeError):  # the parent is gone
        serve(requests, answers)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
