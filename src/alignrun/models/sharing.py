"""Models that are loaded with the same settings are loaded once, within a context that says so."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_shared: ContextVar[dict[Hashable, Any] | None] = ContextVar("shared", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """Within the context, `load_once` keeps what it loads; contexts within it share with it."""
    before = _shared.set({} if (known := _shared.get()) is None else known)
    try:
        yield
    finally:
        _shared.reset(before)


def load_once(key: Hashable, load: Callable[[], T]) -> T:
    """What `load` gives, or what it gave for an equal key within the same context."""
    known = _shared.get()
    if known is None:
        return load()
    if key not in known:
        known[key] = load()
    found: T = known[key]
    return found
