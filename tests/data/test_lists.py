"""A JSON list read element by element holds what the standard library reads at once."""

import io
import json
import random
from typing import Any

import pytest

from alignrun.data import lists
from alignrun.data.lists import ListError, list_elements

ROWS = [
    {"a": 'x "quoted" \\', "b": ["[", "]", {"c": "}, {"}], "": "é\u2028😀"},
    {},
    {"a": "\\\\", "n": -1.5e3, "t": True, "z": None},
    {"a": "", "deep": [[[[]]], {"d": {}}]},
]


def elements(content: bytes, longest: int = 1000) -> list[Any]:
    return [part if part is None else json.loads(part) for part in list_elements(io.BytesIO(content), longest)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_every_split_into_chunks_gives_the_same_rows(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(lists, "_CHUNK", chunk)
    for indent, ascii_only in [(None, True), (2, False)]:
        text = json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only)
        assert elements(f"[{text[1:-1]} \n] \n".encode()) == ROWS


def test_a_damaged_list_is_refused_where_the_standard_library_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_CHUNK", 5)
    drawn = random.Random(0)
    whole = json.dumps(ROWS)
    refused = 0
    for _ in range(1000):
        start, length = drawn.randrange(len(whole)), drawn.choice([0, 1, 1, 5])
        put = "".join(drawn.choices('[]{},:"\\ a1', k=drawn.choice([0, 1, 2])))
        text = whole[:start] + put + whole[start + length :]
        try:
            expected = json.loads(text)
            expected = expected if isinstance(expected, list) else None
        except ValueError:
            expected = None
        try:
            found: Any = elements(text.encode())
        except ValueError:
            found = None
        assert found == expected, text
        refused += found is None
    assert 100 < refused < 950


def test_a_large_element_is_passed_over_and_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_CHUNK", 8)
    exact = '{"a":"123456789"}'
    assert elements(f'[{exact}, {exact[:-2]}0"}}, {{"a": "{"[" * 100}"}}, {exact}]'.encode(), len(exact)) == [
        json.loads(exact), None, None, json.loads(exact)
    ]  # fmt: skip
    held: list[int] = []
    add = lists._Element.add

    def spied(self: Any, piece: bytes) -> None:
        add(self, piece)
        held.append(len(self._held))

    monkeypatch.setattr(lists._Element, "add", spied)
    assert elements(b'["' + b"x" * 5000 + b'"]', 100) == [None]
    assert max(held) <= 100 + 8


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("[{}", "a list that does not end"),
        ("[{}} ", "a list that ends in }"),
        ("[] 1", "more than one list"),
        ("[]\n" + " " * 20 + "[]", "more than one list"),
        ("7", "no list in UTF-8"),
    ],
)
def test_what_is_not_one_list_is_said(monkeypatch: pytest.MonkeyPatch, content: str, kind: str) -> None:
    monkeypatch.setattr(lists, "_CHUNK", 4)
    with pytest.raises(ListError, match=kind):
        elements(content.encode())


def test_spaces_before_a_list_do_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_CHUNK", 4)
    assert elements(b"\xef\xbb\xbf" + b" " * 11 + b"[1]") == [1]
    assert elements(b" " * 11) == elements(b"") == elements(b" [ ] ") == []
