"""The console during a run: a live bar on a terminal, one plain line per step elsewhere."""

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from alignrun.security.terminal import PlainConsole

ABSENT = "–"
SHOWN = {
    "loss": "loss {:.4g}",
    "win_rate": "win rate {:.1%}",
    "accuracy": "accuracy {:.1%}",
    "kl": "KL {:.3g}",
    "tokens_per_second": "{:,.0f} tokens/s",
}
"""The metrics on a line, if the algorithm has them."""


class Progress:
    """Shows the progress of a run. Use as a context manager; `total` and `start` are in steps."""

    def __init__(self, total: int, *, start: int = 0, console: Console | None = None) -> None:
        self.total = total
        self.start = start
        self.console = console or PlainConsole(stderr=True)
        self._began = time.monotonic()
        self._bar: Bar | None = None
        if _is_live(self.console):
            rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # a narrow terminal cuts off the end of the line
            self._bar = Bar(
                BarColumn(bar_width=12),
                TextColumn("{task.description}", markup=False, table_column=rest),
                console=self.console,
                expand=True,
                # Output redirected to a file must not appear on the terminal.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._bar.add_task(self._line(start, {}), total=total, completed=start)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step with its metrics in `SHOWN`."""
        line = self._line(step, metrics)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, description=line)
        else:
            self.note(line)

    def note(self, text: str) -> None:
        """Print a separate line, above the bar if there is one."""
        self.console.print(Text(text), soft_wrap=True)

    def _line(self, step: int, metrics: Mapping[str, float]) -> str:
        parts = [f"step {step}/{self.total}", f"{self._time_left(step)} left"]
        parts += [form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics]
        return "  ".join(parts)

    def _time_left(self, step: int) -> str:
        done = step - self.start
        if done <= 0:
            return ABSENT
        seconds = (time.monotonic() - self._began) / done * max(self.total - step, 0)
        return str(timedelta(seconds=round(seconds)))


def summary_panel(title: str, rows: list[tuple[str, str]], console: Console | None = None) -> None:
    """Print the outcome of a run to standard output: a panel on a terminal, aligned plain lines elsewhere."""
    console = console or PlainConsole()
    if _is_live(console):
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        console.print(Panel(table, title=Text(title), title_align="left", expand=False))
        return
    width = max((len(name) for name, _ in rows), default=0)
    for line in (title, *(f"  {name:<{width}}  {value}" for name, value in rows)):
        console.print(Text(line), soft_wrap=True)


def _is_live(console: Console) -> bool:
    """Whether the console is an interactive terminal; a CI log with forced colours is not one."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
