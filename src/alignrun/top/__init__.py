"""`alignrun top`: a live view of a run, from any other terminal."""

import time

from rich.console import Console
from rich.live import Live

from alignrun.errors import InputError
from alignrun.top.follow import Followed, State
from alignrun.top.view import View

RESIZE_SECONDS = 0.2
"""How soon the view follows a terminal that changes its size."""


def top(path: str, once: bool, interval: float, console: Console) -> int:
    """Show how a run stands, until it has finished or Ctrl-C; the exit code.

    Where nobody looks at a terminal, or with `once`, it is printed a single time and at its full length.

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
    """Draw whenever something can have changed, on a screen of its own that leaves the terminal as it was."""
    view = View(run, fit=True)
    # Given its view only inside, since a Ctrl-C while `Live` enters would leave its screen open.
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
