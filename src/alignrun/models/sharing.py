"""Loads models with the same settings once within a context."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_shared: ContextVar[dict[Hashable, Any] | None] = ContextVar("shared", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """Context in which `load_once` caches; nested contexts share the cache."""
    before = _shared.set({} if (known := _shared.get()) is None else known)
    try:
        yield
    finally:
        _shared.reset(before)


def load_once(key: Hashable, load: Callable[[], T]) -> T:
    """The result of `load`, or of an earlier call with an equal key within the same context."""
    known = _shared.get()
    if known is None:
        return load()
    if key not in known:
        known[key] = load()
    found: T = known[key]
    return found
