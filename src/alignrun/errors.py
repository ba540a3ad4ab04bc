"""The two kinds of failure that are reported to the user on one line, without a traceback."""

import difflib
import errno
from collections.abc import Collection, Iterable


class AlignrunError(Exception):
    """An expected failure: the message is one line that says what, where and how to fix it."""

    exit_code = 1
    raised_together = False
    """Whether all processes of the job raise it, and one of them reports it."""


class InputError(AlignrunError):
    """Bad input: configuration, data, checkpoint or model name. Nothing has been changed."""

    exit_code = 2


class RunError(AlignrunError):
    """A run that cannot continue: a full disk, a loss that is not finite. Saved files stay."""

    exit_code = 1


def of_system(error: OSError) -> RunError:
    """A failure of the operating system, as when a disk is full, as ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"disk full ({one_line(error)}): free space, and repeat the command, or "
            "`alignrun resume RUN` where a run had begun"
        )
    return RunError(f"{type(error).__name__}: {one_line(error)}")


def one_line(error: BaseException, limit: int = 300) -> str:
    """The text of an exception on one line, to quote a library's error in ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """`: did you mean NAME?` for the closest name; empty if none is close."""
    near = difflib.get_close_matches(word, list(names), n=1)
    return f": did you mean {near[0]}?" if near else ""


def suggestion(word: str, names: Collection[str]) -> str:
    """As `did_you_mean`, or `: choose from NAMES` if no name is close."""
    return did_you_mean(word, names) or f": choose from {', '.join(names)}"
