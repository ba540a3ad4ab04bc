"""`alignrun top`: what it reads, what it draws, and when it leaves."""

import contextlib
import fcntl
import io
import json
import math
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from alignrun import cli
from alignrun import top as top_package
from alignrun.errors import InputError
from alignrun.run.directory import RunDirectory, append_jsonl, truncate_jsonl
from alignrun.run.state import State, is_held
from alignrun.security.text import clean
from alignrun.top import top
from alignrun.top.follow import Followed, Tail
from alignrun.top.symbols import figure, sparkline
from alignrun.top.view import View, split_lines

HOLDER = """
import sys
from alignrun.run.directory import RunDirectory
run = RunDirectory(sys.argv[1])
run.lock()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("smoke") / "a [bold]run"
    assert cli.main(["experiment=smoke", "evaluation.every=1", f"run.dir='{run}'"]) == 0
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of ten steps that has recorded nothing yet."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"algo": {"name": "ipo"}, "model": {"name": "tiny"}, "train": {"steps": 10}}
    (folder / "config.yaml").write_text(json.dumps(config | {"evaluation": {"confidence": 0.9}}))
    return folder


def log(run: Path, step: int, **metrics: float | None) -> None:
    append_jsonl(
        run / "metrics.jsonl", {"step": step} | {name.replace("eval_", "eval/"): metrics[name] for name in metrics}
    )


def drawn(run: Path, width: int = 80, height: int = 24, fit: bool = False) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, height=height).print(View(Followed(str(run)), fit=fit))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def row_of(lines: list[str], name: str) -> str:
    return next(line for line in lines if line.startswith(f"{name} "))


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 10, ""),
        ([3.0], 10, "▁"),
        ([5.0] * 4, 10, "▁▁▁▁"),
        ([0.1 + 0.2, 0.3, 0.3], 10, "▁▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([-7, 0], 8, "▁█"),
        ([0, math.nan, 7], 8, "▁ █"),
        ([math.nan, math.inf], 8, "  "),
        ([0, 0, 7, 7, 3, 3], 3, "▁█▄"),
        ([0, math.nan, math.nan, math.nan, 7, 7], 3, "▁ █"),
        (range(800), 8, "▁▂▃▄▅▆▇█"),
        ([1, 2, 3], 1, "▁"),
    ],
)
def test_sparklines(values: Any, width: int, expected: str) -> None:
    assert sparkline(list(values), width) == expected


@pytest.mark.parametrize("count", [50, 51, 99, 1000, 100_003])
def test_a_sparkline_keeps_its_width_and_a_lone_spike(count: int) -> None:
    values = [0.0] * count
    values[count // 3] = 1.0
    line = sparkline(values, 50)
    assert len(line) == 50
    assert line.count("█") == 1
    assert line.count("▁") == 49
    assert abs(line.index("█") - 50 / 3) <= 1


@pytest.mark.parametrize(
    "value", [0.0, -0.00098822, 1e-300, -1.2345e-5, 123456.7, -9999999.0, 1e22, 0.5, 100, math.nan]
)
def test_figures_fit_their_column(value: float) -> None:
    assert len(figure(value)) <= 10
    if math.isfinite(value):
        assert float(figure(value).replace(",", "")) == pytest.approx(value, rel=1e-3)


def test_a_tail_reads_each_row_once_and_waits_for_torn_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    tail = Tail(file)
    assert tail.read() == ([], False)
    file.write_bytes(b'{"a": 1}\nnot json\n[1]\n{"a": "\xc3')
    assert tail.read() == ([{"a": 1}], True)
    assert tail.read() == ([], False)
    with file.open("ab") as opened:
        opened.write(b'\xa9"}\n{"a": 3}\n')
    assert tail.read() == ([{"a": "é"}, {"a": 3}], False)
    assert tail.read() == ([], False)


def test_a_tail_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n' * 1000)
    tail = Tail(file)
    tail.read()
    parsed: list[bytes] = []
    monkeypatch.setattr("alignrun.top.follow._parsed", lambda line: parsed.append(line))
    append_jsonl(file, {"a": 2})
    tail.read()
    assert parsed == [b'{"a": 2}']


def test_a_tail_notices_that_the_file_is_another_one(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for step in range(5):
        append_jsonl(file, {"step": step})
    tail = Tail(file)
    tail.read()
    truncate_jsonl(file, 2)
    assert tail.read() == ([{"step": step} for step in range(3)], True)

    truncate_jsonl(file, 1)
    append_jsonl(file, {"step": 2})
    assert file.stat().st_size == 3 * len('{"step": 0}\n')
    assert tail.read()[1], "replaced by a file of equal length and an equal last line"

    file.write_text('{"other": 1}\n' * 9)
    assert tail.read() == ([{"other": 1}] * 9, True), "overwritten in place by a longer one"
    os.truncate(file, 13)
    assert tail.read() == ([{"other": 1}], True)
    file.unlink()
    assert tail.read() == ([], True)
    assert tail.read() == ([], False)


def test_a_resumed_run_forgets_the_steps_that_were_given_up(run: Path) -> None:
    for step in range(1, 7):
        log(run, step, loss=float(step))
        log(run, step, eval_accuracy=0.5 + step / 100)
    append_jsonl(run / "samples.jsonl", {"step": 6, "prompt": "p", "first": "f", "second": "s", "preference": 0.5})
    followed = Followed(str(run))
    assert (followed.step, list(followed.training["loss"])) == (6, [1, 2, 3, 4, 5, 6])
    truncate_jsonl(run / "metrics.jsonl", 2)
    truncate_jsonl(run / "samples.jsonl", 2)
    followed.update()
    assert (followed.step, list(followed.training["loss"]), len(followed.judged)) == (2, [1, 2], 2)
    assert followed.sample is None
    log(run, 3, loss=9.0)
    followed.update()
    followed.update()
    assert (followed.step, list(followed.training["loss"])) == (3, [1, 2, 9])


@pytest.fixture
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run's lock until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_run_is_running_while_another_process_holds_its_lock(run: Path, holder: subprocess.Popen[str]) -> None:
    log(run, 4, loss=1.0, seconds=2.5)
    followed = Followed(str(run))
    assert followed.state is State.running
    assert followed.seconds_left == 15.0
    (run / "summary.json").write_text('{"step": 10}')
    followed.update()
    assert followed.state is State.running, "it may still be uploading"
    holder.kill()
    holder.wait()
    followed.update()
    assert followed.state is State.finished
    (run / "summary.json").write_text('{"step": 9}')
    followed.update()
    assert followed.state is State.stopped
    assert followed.seconds_left is None
    for broken in ("", "[]", "{}", '{"step": "x"}'):
        (run / "summary.json").write_text(broken)
        followed.update()
        assert followed.state is State.stopped


def test_looking_at_a_lock_does_not_take_it(run: Path) -> None:
    assert is_held(run / ".lock") is False
    assert not (run / ".lock").exists()
    held = RunDirectory(run)
    held.lock()
    assert is_held(run / ".lock") is True
    held.close()
    assert is_held(run / ".lock") is False
    with (run / ".lock").open() as another_viewer:
        fcntl.flock(another_viewer, fcntl.LOCK_SH)
        assert is_held(run / ".lock") is False
    held.lock()
    held.close()


def test_a_file_system_without_locks_is_reported(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    (run / ".lock").touch()
    monkeypatch.setattr("fcntl.flock", refuse)
    assert Followed(str(run)).state is State.unknown
    (run / "summary.json").write_text('{"step": 10}')
    assert Followed(str(run)).state is State.finished


def test_the_time_left_is_that_of_the_last_steps(run: Path, holder: subprocess.Popen[str]) -> None:
    for step, seconds in enumerate([100.0] * 5 + [2.0] * 19 + [None], start=-20):
        log(run, step, seconds=seconds)
    assert Followed(str(run)).seconds_left == 2.0 * 6


def test_before_the_first_step(run: Path) -> None:
    held = RunDirectory(run)
    held.lock()
    lines = drawn(run)
    held.close()
    assert lines[0].startswith("run  ipo on tiny ")
    assert lines[0].endswith("● running")
    assert "step 0/10  0%" in lines[1]
    assert lines[2:] == ["waiting for the first step"]


def test_a_stopped_run_says_how_to_continue(run: Path) -> None:
    log(run, 3, loss=1.0)
    lines = drawn(run, width=200)
    assert lines[0].endswith("● not running")
    assert lines[2] == f"continue with `alignrun resume {run}`"


def test_what_is_drawn(run: Path) -> None:
    for step, loss in enumerate([4.0, 2.0, None, 3.0], start=1):
        log(run, step, kl_k3=1.0, loss=loss, tokens_per_second=12345.6)
    log(run, 2, eval_win_rate=0.25, eval_win_rate_low=0.1, eval_win_rate_high=0.4, eval_length=7.0)
    log(run, 4, eval_win_rate=0.75, eval_win_rate_low=0.5, eval_win_rate_high=None, eval_length=7.0)
    lines = drawn(run, width=120)
    assert "step 4/10  40%  12,346 tokens/s" in lines[1]
    assert lines[1].count("━") == pytest.approx(0.4 * (lines[1].count("━") + lines[1].count("─")), abs=1)
    names = [line.partition(" ")[0] for line in lines]
    assert names.index("loss") < names.index("kl_k3") < names.index("evaluation") < names.index("win_rate")
    assert row_of(lines, "loss").split() == ["loss", "3", "2", "–", "4", "█▁", "▅"], "no arrow after a missing value"
    assert row_of(lines, "kl_k3").split()[2:] == ["→", "1", "–", "1", "▁▁▁▁"]
    assert row_of(lines, "win_rate").split()[1:] == ["0.75", "↑", "0.25", "–", "0.75", "▁█"]
    assert "win_rate_low" not in names
    newest, oldest = (line for line in lines if line.startswith("step "))
    assert newest.startswith("step 4  0.750  0.750 – 0.750  ")
    assert oldest.startswith("step 2  0.250  0.100 – 0.400  ")
    assert "win rate at each evaluation, 90% interval  (┊ is ½)" in lines
    plots = newest[30:].ljust(60), oldest[30:].ljust(60)
    assert plots[0].index("●") == 59
    assert plots[0].index("┊") == plots[1].index("┊") == round(0.4 / 0.65 * 59)
    assert (plots[1].index("─"), plots[1].rindex("─")) == (0, round(0.3 / 0.65 * 59))


@pytest.mark.parametrize(
    ("low", "high", "prompts", "colour"),
    [(0.51, 0.7, 8, "32"), (0.49, 0.7, 8, None), (0.3, 0.49, 8, "31"), (0.3, 0.49, None, "31"), (0.51, 0.7, 7, None)],
)
def test_a_win_rate_is_coloured_where_it_is_settled(
    run: Path, low: float, high: float, prompts: float | None, colour: str | None
) -> None:
    log(run, 4, eval_win_rate=(low + high) / 2, eval_win_rate_low=low, eval_win_rate_high=high, eval_prompts=prompts)
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system="standard", no_color=False)
    console.print(View(Followed(str(run)), fit=False))
    line = next(line for line in file.getvalue().splitlines() if line.startswith("step 4"))
    assert set(re.findall(r"(3[12])m", line)) == ({colour} if colour else set())


def test_hostile_text_stays_text(run: Path) -> None:
    evil = "a\x1b[2J\x07\n[red]b[/red]\u202e\ud800 [/nonsense] \x9b31m\u2028 :smile: \x00"
    append_jsonl(run / "samples.jsonl", {"step": evil, "prompt": evil, "first": evil, "second": None})
    log(run, 1, **{"[bold]\x1bx": 1.0})
    text = "\n".join(drawn(run, width=150))
    assert "[red]b[/red]" in text
    assert "[/nonsense]" in text
    assert ":smile:" in text
    assert "[bold]␛x" in text
    assert not [c for c in text if c != "\n" and unicodedata.category(c).startswith("C")]
    assert clean("\tمرحبا  世界 👩\u200d🚀\u202e\r\n") == "مرحبا 世界 👩\u200d🚀[U+202E]"


@pytest.mark.parametrize("width", [1, 12, 20, 36, 60, 80, 140, 250])
@pytest.mark.parametrize("height", [2, 9, 14, 24, 60])
def test_it_fits_any_terminal(smoke: Path, width: int, height: int) -> None:
    lines = drawn(smoke, width, height, fit=True)
    assert len(lines) <= max(height, 3)
    assert max(map(cell_len, lines)) <= width
    if height >= 24 and width >= 60:
        for expected in ("training", "loss", "last sample", "prompt", "policy", "reference"):
            assert any(line.startswith(expected) for line in lines), expected
    if height == 60:
        assert any(line.startswith("tokens_p") for line in lines) or width < 12
        assert sum(line == "" for line in lines) >= 4, "room for gaps"
    if (width, height) == (80, 24):
        assert len(lines) == 24
        assert any(line.endswith("6 of 14") for line in lines)


def test_a_long_history_and_long_texts_are_cut(run: Path) -> None:
    for step in range(1, 41):
        log(run, step, eval_accuracy=0.5 + step / 100)
    append_jsonl(run / "samples.jsonl", {"step": 40, "prompt": "p" * 9000, "first": "ab", "second": "世" * 300})
    lines = drawn(run, width=60)
    assert sum(line.startswith("step ") for line in lines) == 12
    assert any(line.startswith("accuracy at each evaluation") and line.endswith("12 of 40") for line in lines)
    assert sum(set(line) <= set(" p…") and "p" in line for line in lines) == 5
    assert sum(line.endswith("…") for line in lines) == 2
    assert all(cell_len(line) <= 60 for line in lines)


def test_lines_are_shared_out() -> None:
    assert split_lines(100, [(2, 5), (0, 0), (3, 9)]) == [5, 0, 9]
    assert split_lines(7, [(2, 5), (3, 9)]) == [3, 4]
    assert split_lines(8, [(2, 9), (3, 4)]) == [4, 4]
    assert split_lines(4, [(3, 5), (4, 9)]) == [4, 0]
    assert split_lines(-1, [(1, 5)]) == [0]


def test_once_through_the_command_line(smoke: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", str(smoke), "--once"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("a [bold]run  nash_md on tiny ")
    first, second = text.splitlines()[:2]
    assert first.endswith("● finished")
    assert "step 3/3  100%" in second
    rows = [json.loads(line) for line in (smoke / "metrics.jsonl").read_text().splitlines()]
    names = {name.removeprefix("eval/") for row in rows for name in row} - {"step", "win_rate_low", "win_rate_high"}
    assert all(re.search(rf"^{name} +\S", text, re.MULTILINE) for name in names)
    assert f"{rows[-1]['eval/win_rate']:.3f}" in text
    assert "\x1b" not in text
    assert cli.main(["top", str(smoke)]) == 0
    assert capsys.readouterr().out == text, "no terminal: printed once"


def test_bad_input_is_one_line(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(smoke, broken)
    (broken / "config.yaml").write_text("algo: [")
    for arguments, expected in (
        (["no-such-run"], "does not exist"),
        ([str(smoke), "--interval", "0"], "--interval must be a positive number of seconds, not 0"),
        ([str(smoke), "--interval", "nan"], "--interval must be a positive number of seconds, not nan"),
        ([str(smoke), "--often"], "unrecognized arguments: --often"),
        ([str(broken)], "config.yaml cannot be read"),
        ([], "arguments are required: RUN"),
    ):
        assert cli.main(["top", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert expected in error


class Terminal:
    """A pseudo-terminal and a console on it; what was drawn is everything that has reached it."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w", buffering=1)
        self.console = Console(file=self.file, width=80, height=24, color_system=None)
        self.drawn = ""
        os.set_blocking(self.master, False)

    def read(self) -> str:
        while True:
            try:
                self.drawn += os.read(self.master, 65536).decode()
            except BlockingIOError:
                return self.drawn


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_it_follows_a_run_to_its_end_and_leaves_the_last_state(
    run: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = RunDirectory(run)
    held.lock()
    screens: list[str] = []

    def meanwhile(_seconds: float) -> None:
        screens.append(terminal.read()[sum(map(len, screens)) :])
        step = len(screens)
        log(run, step, loss=float(step))
        if step == 10:
            (run / "summary.json").write_text('{"step": 10}')
            held.close()
        elapsed[0] += 5.0

    elapsed = [0.0]
    monkeypatch.setattr(top_package.time, "sleep", meanwhile)
    monkeypatch.setattr(top_package.time, "monotonic", lambda: elapsed[0])
    assert top(str(run), False, 1.0, terminal.console) == 0
    assert "waiting for the first step" in screens[0]
    assert "\x1b[?1049h" in screens[0], "a screen of its own"
    assert "step 7/10" in screens[7]
    left = terminal.read().split("\x1b[?1049l")[1]
    assert "● finished" in left
    assert "step 10/10  100%" in left
    assert "Ctrl-C" not in left


def test_a_new_size_is_drawn_at_once_and_nothing_else_between_readings(
    run: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(run, 1, loss=1.0)
    sizes: list[int] = []

    def resize(_seconds: float) -> None:
        sizes.append(len(terminal.read()))
        if len(sizes) == 3:
            terminal.console.size = (60, 12)
        if len(sizes) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(top_package.time, "sleep", resize)
    assert top(str(run), False, 1000.0, terminal.console) == 0
    assert sizes[0] == sizes[1] == sizes[2] < sizes[3] == sizes[4] == sizes[5]


def test_once_needs_no_screen_of_its_own(run: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    log(run, 1, loss=1.0)
    monkeypatch.setattr(top_package.time, "sleep", lambda _seconds: pytest.fail("it waits"))
    assert top(str(run), True, 2.0, terminal.console) == 0
    assert "not running" in terminal.read()
    assert "\x1b[?1049h" not in terminal.drawn


def test_ctrl_c_while_it_first_draws_gives_the_terminal_back(
    run: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[object]:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(View, "__rich_console__", interrupted)
    assert top(str(run), False, 2.0, terminal.console) == 0
    assert terminal.read().endswith("\x1b[?1049l")


def test_ctrl_c_leaves_quietly(smoke: Path, run: Path) -> None:
    master, slave = pty.openpty()
    log(run, 1, loss=1.0)
    with subprocess.Popen(
        [sys.executable, "-m", "alignrun", "top", str(run), "--interval", "0.1"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        text, deadline = "", time.monotonic() + 60
        while "step 1/10" not in text and time.monotonic() < deadline:
            text += os.read(master, 65536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    with contextlib.suppress(OSError):  # all of it has been read already, or the terminal is closed
        os.set_blocking(master, False)
        while more := os.read(master, 65536):
            text += more.decode(errors="replace")
    assert "Traceback" not in text
    assert text.rstrip().endswith(("\x1b[?25h", "\x1b[?1049l"))


def test_a_run_that_goes_away_is_reported(run: Path) -> None:
    followed = Followed(str(run))
    shutil.rmtree(run)
    with pytest.raises(InputError, match="does not exist"):
        followed.update()
