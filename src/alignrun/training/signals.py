"""Signals that ask a run to stop: it finishes its step and saves."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

REPEATED = {signal.SIGINT: 0.3, signal.SIGTERM: 5.0}
"""Seconds within which a second signal counts as the same one: launchers forward it to processes that have it."""


@contextmanager
def stop_requested() -> Iterator[Callable[[], signal.Signals | None]]:
    """Within the context, the first SIGTERM or Ctrl-C is only recorded; a second one acts immediately.

    Only the main thread can receive signals: in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received: list[signal.Signals] = []
    previous: dict[signal.Signals, Any] = {}
    began = 0.0

    def remember(number: int, _frame: Any) -> None:
        nonlocal began
        if not received:
            received.append(signal.Signals(number))
            began = time.monotonic()
        elif time.monotonic() - began > REPEATED[signal.Signals(number)]:
            for name, handler in previous.items():
                signal.signal(name, handler)
            signal.raise_signal(number)

    for name in (signal.SIGTERM, signal.SIGINT):
        previous[name] = signal.signal(name, remember)
    try:
        yield lambda: received[0] if received else None
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
