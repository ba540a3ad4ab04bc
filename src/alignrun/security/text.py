"""Text for people: untrusted text made safe to show, and counts."""

import re

INVISIBLE = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
INVISIBLE += "\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
"""Unicode's default ignorable characters, including all that change the direction, and its line separators.

Variation selectors are kept: they only select the form of the preceding character.
"""
_HIDDEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff{INVISIBLE}]")
_JOINED = r"[^\x00-\u02ff\u2000-\u206f\ud800-\udfff\ufeff]"
"""Characters allowed next to a joiner: letters of the scripts that need joiners, and parts of emoji."""
_JOINER = re.compile(f"(?<={_JOINED})[\u200c\u200d](?={_JOINED})")


def visible(text: str) -> str:
    """Make a string valid UTF-8 and XML, harmless on a terminal, and displayed in its logical order.

    Control characters become their pictures (␛), and other hidden ones their code points ([U+202E]). Line feeds and
    tabs stay, and so do joiners within words and emoji that need them.
    """
    text = text.replace("\r\n", "\n")
    if _HIDDEN.search(text) is None:
        return text
    kept = {found.start() for found in _JOINER.finditer(text)}
    return _HIDDEN.sub(lambda found: found[0] if found.start() in kept else _code(found[0]), text)


def _code(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"[U+{code:X}]"


def clean(text: object, limit: int | None = None) -> str:
    """Untrusted text on one line, harmless on a terminal; more than `limit` characters end in an ellipsis."""
    line = " ".join(visible(str(text)).split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"


def counted(number: float, noun: str) -> str:
    """A count with its noun: `1 prompt`, `2 prompts`, `1,200 held-out prompts`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
