"""Examples on disk are those that were put there."""

import tempfile
from dataclasses import fields, replace
from typing import Any

import pytest

from alignrun.data import store
from alignrun.data.store import Examples, Kind, first_below, kinds_of, record_of
from alignrun.data.values import BadRowError
from alignrun.errors import RunError
from alignrun.types import Example

TURN = {"role": "user", "content": "é'\n"}
PLAIN = Example("a{b}", "p.jsonl:1")
PAIR = Example("Say hi", "a.jsonl:1", "hi", "ho")
FULL = Example(
    (TURN,),
    "p[0]",
    "c",
    "d",
    0.75,
    (1.0, 0.5),
    (TURN, TURN),
    (TURN,),
    ({"name": "f", "n": 2**70},),
    {"answer": ["4", None]},
)
TIE = replace(PAIR, label=0.5)
SHOWN = Example("q", "x", chosen="a")


@pytest.mark.parametrize("held", [0, 150, 1 << 24])
def test_examples_come_back_from_memory_and_from_the_file(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(store, "_HELD", held)
    given = [PLAIN, PAIR, FULL, TIE, SHOWN] * 20
    examples = Examples(given)
    assert list(examples) == given
    assert examples[::7] == given[::7]
    assert examples[-1] == given[-1]
    with pytest.raises(IndexError):
        examples[len(given)]


def test_every_field_of_an_example_is_kept() -> None:
    assert len(record_of(FULL)) == len(fields(Example)), "give FULL a value for each field"


def test_kinds_are_known_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [PAIR, FULL, TIE, SHOWN, PLAIN]
    examples = Examples(given)
    assert first_below(examples, Kind.tie) == SHOWN
    assert first_below(given, Kind.demonstration) == PLAIN
    monkeypatch.setattr(Examples, "_at", None)
    assert list(kinds_of(examples)) == [Kind.pair, Kind.pair, Kind.tie, Kind.demonstration, Kind.prompt]
    assert first_below(examples, Kind.prompt) is None


def digest(*examples: Example) -> str:
    return Examples(examples).digest


def test_the_digest_is_that_of_the_content_wherever_it_was_read_from() -> None:
    assert digest(PAIR) == digest(replace(PAIR, origin="b.jsonl:7"))
    assert digest(replace(FULL, columns=None)).startswith("52f5d9504e7c")
    assert digest(FULL) != digest(replace(FULL, columns={"answer": ["5", None]}))
    assert len({digest(PAIR), digest(TIE), digest(PAIR, TIE), digest(TIE, PAIR), digest(FULL), digest()}) == 6
    interned, made = "role", "".join(["ro", "le"])
    assert digest(replace(PAIR, chosen=interned)) == digest(replace(PAIR, chosen=made))


def test_a_value_that_is_no_json_makes_a_bad_row() -> None:
    with pytest.raises(BadRowError, match=r"^data: p\[0\] holds a value that is not a text"):
        Examples([replace(FULL, tools=({"name": object()},))])


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_HELD", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(RunError, match=r"No space left on device.*set TMPDIR"):
        Examples([PAIR])
