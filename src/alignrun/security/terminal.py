"""All that reaches a terminal passes here, so that text which others wrote is shown and never obeyed."""

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
    """A console on which a string is only a string: no markup, no emoji codes, and nothing hidden in it.

    What rich itself sends, as colours and movements of the cursor, is no text and not touched.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as text, the hidden characters shown."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything; all texts in it come here, however deep they are."""
        return super().render(_shown(renderable) if isinstance(renderable, Text) else renderable, options)


def _shown(text: Text) -> Text:
    """The same text in the same styles, the hidden characters shown."""
    plain = visible(text.plain)
    if plain == text.plain:
        return text
    shown = text.blank_copy(plain)

    def moved(place: int) -> int:
        return len(visible(text.plain[:place]))

    shown.spans = [Span(moved(span.start), moved(span.end), span.style) for span in text.spans]
    return shown


def say(message: str) -> None:
    """Print a message to standard error, in one line."""
    print(visible(" ".join(message.split())), file=sys.stderr)


class Record(logging.LogRecord):
    """What a library logs, its hidden characters shown, and an exception with it in a few words and not as a traceback.

    Formatting one never fails, whatever its arguments are.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._raised, self.exc_info = self.exc_info, None

    def getMessage(self) -> str:
        """The message with its arguments."""
        try:
            text = super().getMessage()
        except Exception:  # arguments that do not fit their places, or fail to become text
            text = f"{self.msg if isinstance(self.msg, str) else type(self.msg).__name__} (with unfit arguments)"
        if self._raised and (error := self._raised[1]) is not None:
            *_, frame = traceback.extract_tb(error.__traceback__) or [None]
            place = f", {frame.filename}:{frame.lineno}" if frame else ""
            text += f" ({type(error).__name__}: {one_line(error)}{place})"
        return visible(text)


def _say_record(self: logging.Handler, record: logging.LogRecord) -> None:
    """Where a handler cannot write, as into a stream that has been closed, the terminal still gets the message."""
    with contextlib.suppress(Exception):
        say(record.getMessage())


def guard() -> None:
    """From now on what libraries log, warn of and raise is shown in the same way."""
    formatted = warnings.formatwarning
    warnings.formatwarning = lambda *given, **named: visible(formatted(*given, **named))
    logging.setLogRecordFactory(Record)
    logging.Handler.handleError = _say_record  # type: ignore[method-assign]
    sys.excepthook = lambda *raised: print(
        visible("".join(traceback.format_exception(*raised))), file=sys.stderr, end=""
    )
