"""Text that others wrote, as it is shown."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignrun.security.text import counted, visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x00\x1b[2J\r\n\tb\r\x7f\x9b31m", "a␀␛[2J\n\tb␍␡[U+9B]31m"),
        ("\ud83d \u202etxt\u2069 \uffff", "[U+D83D] [U+202E]txt[U+2069] [U+FFFF]"),
        ("pay\u200bpal a\u200dlpha \ufeffx\u00ady", "pay[U+200B]pal a[U+200D]lpha [U+FEFF]x[U+AD]y"),
        ("one\u2028two\U000e0041\u3164", "one[U+2028]two[U+E0041][U+3164]"),
        ("👩\u200d\u200d👧 \u200d👧", "👩[U+200D][U+200D]👧 [U+200D]👧"),  # joiners that join nothing
        ("שלום 👩‍👩‍👧 ❤️‍🔥 ≻ π é", "שלום 👩‍👩‍👧 ❤️‍🔥 ≻ π é"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian cannot be written without
        ("क\u094d\u200dष", "क\u094d\u200dष"),
    ],
)
def test_what_cannot_be_seen_becomes_visible(text: str, expected: str) -> None:
    assert visible(text) == expected
    assert visible(expected) == expected


@given(st.text(st.characters(categories=None)))
def test_nothing_hidden_is_left_but_what_joins(text: str) -> None:
    shown = visible(text)
    shown.encode()
    visible_formats = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
    allowed = "\n\t\u200c\u200d" + visible_formats
    left = [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Cf", "Zl", "Zp") and c not in allowed]
    assert not left, [hex(ord(c)) for c in left]


def test_a_count_agrees_with_its_noun() -> None:
    assert [counted(number, "prompt") for number in (0, 1, 2, 1200)] == [
        "0 prompts", "1 prompt", "2 prompts", "1,200 prompts",
    ]  # fmt: skip
