"""All terminal output passes here, so that untrusted text is shown and its control characters have no effect."""

import contextlib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Span, Text

from alignrun.errors import one_line
from alignrun.security.text import visible


class PlainConsole(Console):
    """A console that prints strings literally: no markup, no emoji codes, and hidden characters made visible.

    rich's own control codes (colours, cursor movements) are not text, and pass unchanged.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as text, with hidden characters made visible."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything; every text in it passes here, however deeply nested."""
        return super().render(_shown(renderable) if isinstance(renderable, Text) else renderable, options)


def _shown(text: Text) -> Text:
    """The same text in the same styles, with hidden characters made visible."""
    plain = visible(text.plain)
    if plain == text.plain:
        return text
    shown = text.blank_copy(plain)

    def moved(place: int) -> int:
        return len(visible(text.plain[:place]))

    shown.spans = [Span(moved(span.start), moved(span.end), span.style) for span in text.spans]
    return shown


def say(message: str) -> None:
    """Print a message to standard error, on one line."""
    print(visible(" ".join(message.split())), file=sys.stderr)


class Record(logging.LogRecord):
    """A library's log record, with hidden characters made visible and an exception as a few words, not a traceback.

    Formatting it never fails, whatever its arguments are.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._raised, self.exc_info = self.exc_info, None

    def getMessage(self) -> str:
        """The message with its arguments."""
        try:
            text = super().getMessage()
        except Exception:  # the arguments do not match the format, or their __str__ fails
            text = f"{self.msg if isinstance(self.msg, str) else type(self.msg).__name__} (with invalid arguments)"
        if self._raised and (error := self._raised[1]) is not None:
            *_, frame = traceback.extract_tb(error.__traceback__) or [None]
            place = f", {frame.filename}:{frame.lineno}" if frame else ""
            text += f" ({type(error).__name__}: {one_line(error)}{place})"
        return visible(text)


def _say_record(self: logging.Handler, record: logging.LogRecord) -> None:
    """Print the message of a handler that fails, for example because its stream is closed."""
    with contextlib.suppress(Exception):
        say(record.getMessage())


def guard() -> None:
    """Show what libraries log, warn about and raise in the same way, from now on."""
    formatted = warnings.formatwarning
    warnings.formatwarning = lambda *given, **named: visible(formatted(*given, **named))
    logging.setLogRecordFactory(Record)
    logging.Handler.handleError = _say_record  # type: ignore[method-assign]
    sys.excepthook = lambda *raised: print(
        visible("".join(traceback.format_exception(*raised))), file=sys.stderr, end=""
    )
