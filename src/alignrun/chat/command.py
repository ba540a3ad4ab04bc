"""The loop of `alignrun chat`: a message, then the answer of each policy."""

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console

from alignrun.chat.screen import Screen
from alignrun.chat.seats import Seat, seats
from alignrun.config import SamplingConfig
from alignrun.errors import InputError, RunError, one_line
from alignrun.security.text import counted

PROMPT = "> "
NEW, EXIT = "/new", "/exit"


def chat(sources: Sequence[str], reference: bool, config: SamplingConfig, console: Console) -> int:
    """Talk to one or two policies until the input ends; returns the exit code.

    Args:
        sources: runs, checkpoints, models of `alignrun ls model`, model folders or hub ids.
        reference: whether the references of runs answer too.
        config: how answers are sampled.
        console: where they appear.

    Raises:
        InputError: a policy is not available; or, where the input is not a terminal, a message cannot be answered.
        RunError: out of memory.
    """
    talking = sys.stdin.isatty()
    try:
        answering = seats(sources, reference, config)
        screen = Screen(console, answering, talking=talking)
        if talking:
            for seat in answering:
                screen.remark(_about(seat))
            screen.remark(f"{NEW} starts over, {EXIT} or Ctrl-D ends, Ctrl-C ends an answer")
        for seat in answering:
            if not seat.remembers:
                screen.remark(f"{seat.name} has no chat template: it continues each message, and forgets earlier ones")
        for message in _messages(talking):
            _answer(message, answering, screen, talking)
    except torch.OutOfMemoryError as error:
        raise RunError(f"out of memory ({one_line(error, 120)}): lower max_new_tokens, or start over") from error
    return 0


def _about(seat: Seat) -> str:
    step = "" if seat.player.step is None else f" (step {seat.player.step})"
    limit = counted(seat.max_new_tokens, "token")
    return f"{seat.name}: {seat.player.source}{step}, at temperature {seat.temperature:g}, at most {limit}"


def _messages(talking: bool) -> Iterator[str]:
    """The lines that are typed, or those of standard input, up to `/exit`; blank ones are skipped."""
    if talking:
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # `input` then edits lines and remembers them
    for line in _typed() if talking else _lines():
        if line.strip() == EXIT:
            return
        if line.strip():
            yield line.strip()


def _typed() -> Iterator[str]:
    while True:
        try:
            yield input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError:
            continue


def _lines() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8: convert it, as with iconv") from None


def _answer(message: str, answering: Sequence[Seat], screen: Screen, talking: bool) -> None:
    if message == NEW:
        for seat in answering:
            seat.start_over()
        screen.remark("a new conversation")
        return
    if re.fullmatch(r"/[a-z]+", message):
        screen.remark(f"{message} is not a command: {NEW} starts over, {EXIT} ends")
        return
    try:
        encoded = [seat.encode(message) for seat in answering]
    except InputError as error:
        if not talking:
            raise
        screen.remark(str(error))
        return
    with screen.answers() as place:
        for seat, ids in zip(answering, encoded, strict=True):
            show = place(seat)
            text, ended = seat.answer(message, ids, show)
            screen.end(seat, text, show, ended=ended)
