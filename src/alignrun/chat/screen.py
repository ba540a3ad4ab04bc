"""What a conversation looks like: answers one after another, or in columns on a terminal."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alignrun.chat.seats import Seat
from alignrun.security.terminal import say
from alignrun.security.text import visible

COLUMN = 30
"""The narrowest column of an answer; on a narrower terminal answers appear one below another."""
REDRAW = 0.05
"""Seconds between two updates of the columns."""

Show = Callable[[str], None]


class Screen:
    """Shows answers as they grow."""

    def __init__(self, console: Console, seats: Sequence[Seat], *, talking: bool) -> None:
        """`talking`: a user types; remarks are printed between the answers, otherwise to standard error."""
        self._console, self._seats, self._talking = console, seats, talking
        wide = console.width >= COLUMN * len(seats)
        self._columns = len(seats) > 1 and wide and console.is_terminal and not console.is_dumb_terminal

    @contextmanager
    def answers(self) -> Iterator[Callable[[Seat], Show]]:
        """Within the context the seats answer one message; yields a function that gives each its `show`."""
        if self._columns:
            yield from self._side_by_side()
            return

        def place(seat: Seat) -> Show:
            return self._growing(f"{seat.name}: " if len(self._seats) > 1 else "")

        yield place
        self._write("\n")

    def end(self, seat: Seat, text: str, show: Show, *, ended: bool) -> None:
        """Complete an answer, now that all of it is known."""
        show(text)
        if not self._columns:
            self._write("\n" if text else "(no text)\n")
        if not ended:
            self.remark(f"{seat.name} was cut off after {seat.max_new_tokens} tokens (max_new_tokens)")

    def remark(self, text: str) -> None:
        """Print a remark, which is not part of an answer."""
        if self._talking:
            self._console.print(Text(text, style="dim"), soft_wrap=True)
        else:
            say(f"alignrun: {text}")

    def _growing(self, label: str) -> Show:
        shown = ""
        self._console.print(Text(label, style="bold"), end="", soft_wrap=True)

        def show(text: str) -> None:
            nonlocal shown
            now = visible(text)
            if now.startswith(shown):
                self._write(now[len(shown) :])
            else:  # the tokenizer has changed earlier characters: all of it again
                self._write(f"\n{now}")
            shown = now

        return show

    def _write(self, piece: str) -> None:
        """Write a piece of visible text as it is: rich would expand tabs from the start of each piece."""
        self._console.file.write(piece)
        self._console.file.flush()

    def _side_by_side(self) -> Iterator[Callable[[Seat], Show]]:
        texts = {seat.name: "" for seat in self._seats}
        drawn = 0.0

        def table() -> Table:
            grid = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            for seat in self._seats:
                grid.add_column(Text(seat.name), ratio=1, overflow="fold")
            grid.add_row(*(Text(visible(text)) for text in texts.values()))  # `Text` itself drops some of it
            return grid

        with Live(console=self._console, auto_refresh=False) as live:

            def place(seat: Seat) -> Show:
                def show(text: str) -> None:
                    nonlocal drawn
                    texts[seat.name] = text
                    if time.monotonic() - drawn >= REDRAW:
                        live.update(table(), refresh=True)
                        drawn = time.monotonic()

                return show

            yield place
            live.update(table(), refresh=True)
