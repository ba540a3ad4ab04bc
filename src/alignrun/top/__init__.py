"""`alignrun top`: a live view of a run from another terminal."""

import time

from rich.console import Console
from rich.live import Live

from alignrun.errors import InputError
from alignrun.run.state import State
from alignrun.top.follow import Followed
from alignrun.top.view import View

RESIZE_SECONDS = 0.2
"""Seconds until the view follows a resized terminal."""


def top(path: str, once: bool, interval: float, console: Console) -> int:
    """Show the state of a run until it finishes or Ctrl-C; returns the exit code.

    With `once`, or when the output is not a terminal, print it once at full length.

    Raises:
        InputError: there is no run at `path`, or the interval is not positive.
    """
    if not interval > 0:
        raise InputError(f"alignrun top: --interval must be a positive number of seconds, not {interval:g}")
    try:
        run = Followed(path)
        if not once and console.file.isatty() and not console.is_dumb_terminal:
            _watch(run, interval, console)
    except KeyboardInterrupt:
        return 0
    console.print(View(run, fit=False))
    return 0


def _watch(run: Followed, interval: float, console: Console) -> None:
    """Redraw when something may have changed, on the alternate screen, which restores the terminal afterwards."""
    view = View(run, fit=True)
    # Set the view only inside: Ctrl-C while `Live` enters would leave the alternate screen open.
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while run.state is not State.finished:
            live.update(view, refresh=True)
            drawn, due = console.size, time.monotonic() + interval
            while (left := due - time.monotonic()) > 0:
                time.sleep(min(left, RESIZE_SECONDS))
                if console.size != drawn:
                    live.refresh()
                    drawn = console.size
            run.update()
