"""Runs waiting tasks in threads, and computing tasks meanwhile."""

from collections.abc import Callable, Collection, Mapping
from contextvars import copy_context
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def side_by_side(tasks: Mapping[str, Callable[[], T]], apart: Collection[str]) -> dict[str, T]:
    """The results by name: each task in `apart` has its own thread, and the others run here, in order.

    If one fails, all others still finish, so that paid answers are not lost. Then the first
    failure is raised, in the order of the tasks.
    """
    results: dict[str, T] = {}
    failures: dict[str, Exception] = {}

    def run(name: str) -> None:
        try:
            results[name] = tasks[name]()
        except Exception as error:  # raised below
            failures[name] = error

    # Daemons, so that a second Ctrl-C does not wait for a server.
    threads = [Thread(target=copy_context().run, args=(run, name), daemon=True) for name in tasks if name in apart]
    for thread in threads:
        thread.start()
    for name in tasks:
        if name not in apart:
            run(name)
    for thread in threads:
        thread.join()
    for name in tasks:
        if name in failures:
            raise failures[name]
    return {name: results[name] for name in tasks}
