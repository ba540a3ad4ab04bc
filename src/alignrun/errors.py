"""The two kinds of failure that a user is told about in one line, without a traceback."""


class AlignrunError(Exception):
    """A failure that alignrun understands: the message is one line that says what, where and how to mend it."""

    exit_code = 1
    raised_together = False
    """Whether all processes of the job have it, and one of them tells the user."""


class InputError(AlignrunError):
    """Bad input: configuration, data, checkpoint or model name. Nothing was changed."""

    exit_code = 2


class RunError(AlignrunError):
    """A run that could not go on: a full disk, a loss that is not finite. What was saved stays."""

    exit_code = 1


def one_line(error: BaseException, limit: int = 300) -> str:
    """The text of any exception folded into one line, for quoting a library's error inside ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
