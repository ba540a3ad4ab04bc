"""Nothing that others wrote is obeyed by a terminal, whichever command shows it."""

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports.examples import player, sweep, tournament
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from alignrun import cli
from alignrun.errors import InputError
from alignrun.launch import train
from alignrun.launch.compose import compose, dump, load
from alignrun.run.directory import append_jsonl
from alignrun.run.progress import Progress, summary_panel
from alignrun.security.terminal import PlainConsole, guard
from alignrun.sweeps.table import print_ranking
from alignrun.tournament import scoreboard

EVIL = "a\x1b]0;title\x07\x1b[2J\x9b31m\u202e\u200b[red]b[/red][/y] :smile:"
HARMLESS = "␛[2J[U+9B]31m[U+202E][U+200B][red]b[/red][/y] :smile:"
"""How all of it looks from the second sequence on."""


ACTIVE = set("\x1b\x07\x08\x9b\r\u202e\u200b")


def test_a_console_obeys_no_text_however_deep_it_is() -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=200, force_terminal=True, color_system="standard", highlight=False)
    table = Table("head" + EVIL, title=EVIL, caption=Text(EVIL))
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    console.print(Panel(table, title=Text(EVIL)))
    console.print(EVIL, Text(EVIL))
    said = file.getvalue()
    assert said.count(HARMLESS) == 8
    own = said.replace("\x1b[0m", "").replace("\x1b[1m", "").replace("\x1b[2;3m", "").replace("\x1b[3m", "")
    assert "\x1b[2J" not in said
    assert "title\x07" not in said
    assert "\u202e" not in own
    rows = [line for line in own.splitlines() if line.startswith("│ │")]
    assert len({len(row) for row in rows}) == 1, "the columns are as wide as what they show"


def test_styles_stay_where_they_were() -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=80, force_terminal=True, color_system="standard", highlight=False)
    console.print(Text.assemble("x\x1by", ("bold\u202e", "bold"), "z"))
    assert file.getvalue() == "x␛y\x1b[1mbold[U+202E]\x1b[0mz\n"


@pytest.fixture
def guarded() -> Iterator[None]:
    before = sys.excepthook, warnings.formatwarning, logging.getLogRecordFactory(), logging.Handler.handleError
    guard()
    yield
    sys.excepthook, warnings.formatwarning = before[:2]
    logging.setLogRecordFactory(before[2])
    logging.Handler.handleError = before[3]  # type: ignore[method-assign]


@pytest.mark.usefixtures("guarded")
def test_what_libraries_log_warn_of_and_raise_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("somebody")
    logger.propagate = False  # handlers that other tests leave at the root are not what is tested
    logger.addHandler(handler)
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        logger.warning("said %s", EVIL)
        logger.exception("failed")
        print(warnings.formatwarning(EVIL, UserWarning, "file", 1), file=sys.stderr)
        sys.excepthook(type(error), error, error.__traceback__)
    logger.removeHandler(handler)
    said = capsys.readouterr().err
    assert said.count(HARMLESS) >= 4
    assert not ACTIVE & set(said)


class NoText:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.usefixtures("guarded")
def test_no_log_record_prints_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither one with an exception, nor one that does not format, nor one whose stream is closed."""
    closed, working = io.StringIO(), logging.StreamHandler(sys.stderr)
    closed.close()
    broken = logging.StreamHandler(closed)
    logger = logging.getLogger("somebody else")
    logger.propagate = False
    logger.addHandler(working)
    try:
        raise ValueError("the reason")
    except ValueError:
        logger.exception("it failed")
    logger.warning("%d prompts of %s", 3)
    logger.warning("%s is odd", NoText())
    logger.warning(NoText())
    logger.removeHandler(working)
    logger.addHandler(broken)
    logger.warning("into a closed %s", "stream")
    logger.removeHandler(broken)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"it failed (ValueError: the reason, {__file__}:")
    assert lines[1:] == [
        "%d prompts of %s (with invalid arguments)",
        "%s is odd (with invalid arguments)",
        "NoText (with invalid arguments)",
        "into a closed stream",
    ]


def test_what_is_printed_during_a_run_and_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole(width=300)
    with Progress(2, console=console) as progress:
        progress.note(EVIL)
    summary_panel(EVIL, [(EVIL, EVIL)], console)
    players = (player(EVIL, 0.6), *tournament().players[1:])
    scoreboard.show(replace(tournament(), players=players, reference=EVIL, preference=EVIL, notes=(EVIL,)), console)
    settings = tuple(replace(one, overrides=(EVIL, str(place))) for place, one in enumerate(sweep().settings))
    print_ranking(replace(sweep(), directory=EVIL, settings=settings, runs=()), console)
    said = capsys.readouterr().out
    assert said.count(HARMLESS) >= 8
    assert not ACTIVE & set(said)


@pytest.mark.parametrize(
    "arguments",
    [
        [EVIL],
        ["ls", EVIL],
        ["resume", EVIL],
        ["export", EVIL],
        ["exploit", EVIL],
        ["top", EVIL],
        ["top", "x", EVIL],
        ["eval", f"runs=['{EVIL}','b']"],
        [f"model='{EVIL}'"],
        ["plan", "model=path", f"model.path='{EVIL}'"],
        ["-m", "seed=1,2", f"algo='{EVIL}'"],
    ],
    ids=["word", "ls", "resume", "export", "exploit", "top", "top option", "eval", "train", "plan", "sweep"],
)
def test_no_command_says_it_in_its_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert "[2J" in said.err
    assert not ACTIVE & set(said.out + said.err)


def test_nor_does_a_run_that_reads_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Names of data stand in what a run says while it is assembled; [/y] was a traceback there, [red] was lost."""

    def assemble(config: Any, notify: Any, *_: Any) -> None:
        notify(f"10 prompts of {config.data.path}")
        raise InputError(f"{config.data.path} cannot be read")

    monkeypatch.setattr(train, "assemble", assemble)
    monkeypatch.setattr(train, "check", lambda _: None)
    arguments = ["experiment=smoke", "data=jsonl", f"data.path='{EVIL}'", f"run.dir='{tmp_path / 'run'}'"]
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    for stream in said:
        assert HARMLESS in stream
        assert not ACTIVE & set(stream)


def test_nor_does_the_view_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run\x1b[2J"
    run.mkdir()
    config = {
        "algo": {"name": EVIL},
        "model": {"name": EVIL},
        "train": {"steps": 10},
        "evaluation": {"confidence": 0.9},
    }
    (run / "config.yaml").write_text(json.dumps(config))
    append_jsonl(run / "metrics.jsonl", {"step": 1, EVIL: 1.0})
    append_jsonl(run / "samples.jsonl", {"step": 1, "prompt": EVIL, "first": EVIL, "second": EVIL})
    assert cli.main(["top", str(run), "--once"]) == 0
    said = capsys.readouterr().out
    assert said.count(HARMLESS) >= 5
    assert not ACTIVE & set(said)


def test_a_configuration_with_hidden_characters_is_printed_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that YAML would write as they are become its escapes, so that what is printed can be read back."""
    arguments = ["experiment=smoke", f"run.dir='{EVIL}'", "model.revision='1e-4'"]
    assert cli.main(["config", *arguments]) == 0
    printed = capsys.readouterr().out
    assert not ACTIVE & set(printed)
    assert printed == dump(compose(arguments))
    (tmp_path / "config.yaml").write_text(printed)
    assert load(tmp_path / "config.yaml") == compose(arguments)
