import io
import os
import pty
import re
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from alignrun.run.progress import Progress, summary_panel

METRICS = {"loss": 0.69314, "win_rate": 0.5312, "kl": 0.012345, "tokens_per_second": 1234.5, "other": 1.0}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal:
    """A real pseudo-terminal and a console on it."""

    def __init__(self, width: int = 120) -> None:
        self.master, self.slave = pty.openpty()
        self.file = os.fdopen(self.slave, "w", buffering=1)
        self.console = Console(file=self.file, width=width, color_system=None)

    def text(self) -> str:
        """What was drawn so far, without cursor movements and with every redrawing on a line of its own."""
        os.set_blocking(self.master, False)
        read = b""
        while True:
            try:
                read += os.read(self.master, 65536)
            except BlockingIOError:
                break
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read.decode()).replace("\r", "\n")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_one_plain_line_for_each_step(clock: Clock) -> None:
    file = io.StringIO()
    with Progress(100, console=Console(file=file, width=40)) as progress:
        clock.now += 30
        progress.update(10, METRICS)
        progress.note("saved runs=[bold]a[/bold] " + "x" * 100)
        clock.now += 3570
        progress.update(100, {"loss": 12345.678})
    assert file.getvalue().splitlines() == [
        "step 10/100  0:04:30 left  loss 0.6931  win rate 53.1%  KL 0.0123  1,234 tokens/s",
        "saved runs=[bold]a[/bold] " + "x" * 100,
        "step 100/100  0:00:00 left  loss 1.235e+04",
    ]


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(clock: Clock) -> None:
    file = io.StringIO()
    with Progress(100, start=80, console=Console(file=file)) as progress:
        progress.update(80, {})
        clock.now += 20
        progress.update(90, {"win_rate": 0.0})
    first, second = file.getvalue().splitlines()
    assert first == "step 80/100  – left"
    assert second == "step 90/100  0:00:20 left  win rate 0.0%"


def test_colours_forced_on_in_a_log_make_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    with Progress(2, console=Console(file=file)) as progress:
        progress.update(1, METRICS)
        progress.update(2, METRICS)
    assert [line.partition("  ")[0] for line in file.getvalue().splitlines()] == ["step 1/2", "step 2/2"]


@pytest.mark.parametrize("width", [60, 120])
def test_a_live_bar_on_a_terminal(width: int, clock: Clock) -> None:
    terminal = Terminal(width)
    with Progress(100, start=50, console=terminal.console) as progress:
        progress.update(75, METRICS)
        progress.note("checkpoint [75] saved")
    lines = terminal.text().split("\n")
    assert "checkpoint [75] saved" in lines
    assert any(line.startswith("━") and "step 50/100  – left" in line for line in lines)
    assert any(line.startswith("━") and "step 75/100  0:00:00 left" in line for line in lines)
    if width == 120:
        assert any("loss 0.6931  win rate 53.1%  KL 0.0123  1,234 tokens/s" in line for line in lines)
    assert max(map(len, lines)) <= width


def test_what_is_printed_into_a_file_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with Progress(3, console=terminal.console):
            print("a result")
    assert (tmp_path / "out").read_text() == "a result\n"
    assert "a result" not in terminal.text()


def test_the_summary_is_a_panel_on_a_terminal_and_lines_elsewhere() -> None:
    rows = [("win rate", "62.5% [0.5, 0.7]"), ("run", "/runs/" + "q" * 80)]
    terminal = Terminal(60)
    summary_panel("nash_md [tiny]", rows, terminal.console)
    drawn = terminal.text()
    assert "╭─ nash_md [tiny] ─" in drawn
    assert "62.5% [0.5, 0.7]" in drawn
    assert drawn.count("q") == 80
    assert max(map(len, drawn.split("\n"))) <= 60

    file = io.StringIO()
    summary_panel("nash_md [tiny]", rows, Console(file=file, width=60))
    assert file.getvalue().splitlines() == [
        "nash_md [tiny]",
        "  win rate  62.5% [0.5, 0.7]",
        "  run       /runs/" + "q" * 80,
    ]
