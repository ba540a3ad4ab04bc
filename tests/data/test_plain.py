"""Rows of plain text are read as all others are."""

import random
from typing import Any

import pytest

from alignrun.config import ColumnsConfig
from alignrun.data.plain import RowReader, plain_columns
from alignrun.data.records import parse_row
from alignrun.data.store import record_of
from alignrun.errors import InputError

TURN = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}
VALUES = [
    "text",
    "other",
    " text ",
    "",
    " \n",
    "é\ud83d",
    "\n\nHuman: a\n\nAssistant: b",
    None,
    1,
    [TURN],
    [TURN, SAID],
]
NAMES = ["prompt", "chosen", "rejected", "completion", "messages", "conversations", "system", "tools", "label", "input"]
CONFIGS = [
    ColumnsConfig(),
    ColumnsConfig(prompt="q"),
    ColumnsConfig(prompt="messages"),
    ColumnsConfig(input="input"),
    ColumnsConfig(system="extra"),
    ColumnsConfig(system=None, tools=None),
    ColumnsConfig(tools="extra"),
    ColumnsConfig(label="label"),
    ColumnsConfig(votes=["extra"]),
    ColumnsConfig(chosen="extra", completion="q"),
    ColumnsConfig(chosen="prompt"),
    ColumnsConfig(completion="prompt"),
    ColumnsConfig(messages="extra"),
    ColumnsConfig(ignored=["label", "system", "context"]),
]


def outcome(read: Any, row: dict[str, Any]) -> Any:
    try:
        return read(row, "p:1")
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("wanted", [(), ("extra", "id"), None])
@pytest.mark.parametrize("columns", CONFIGS)
def test_the_fast_way_gives_what_the_thorough_one_gives(columns: ColumnsConfig, wanted: Any) -> None:
    drawn = random.Random(0)
    fast = RowReader(columns, wanted)
    names = [*NAMES, "q", "extra", "context", "id"]
    for _ in range(1500):
        chosen = drawn.sample(names[: 4 if drawn.random() < 0.5 else None], drawn.randint(1, 4))
        texts = VALUES[:3] if drawn.random() < 0.7 else VALUES
        row = {name: drawn.choice(texts) for name in chosen}
        thorough = outcome(lambda row, origin: record_of(parse_row(row, origin, columns, wanted)), row)
        assert outcome(fast, row) == thorough, row


def test_plain_rows_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignrun.data.plain.parse_row", None)
    read = RowReader(ColumnsConfig())
    assert read({"prompt": "q", "id": 3}, "p:1") == ("q", "p:1")
    assert read({"chosen": "a", "prompt": "q", "rejected": "b"}, "p:2") == ("q", "p:2", "a", "b")
    assert read({"prompt": "q", "completion": "a"}, "p:3") == ("q", "p:3", "a")
    assert plain_columns(("prompt", "chosen"), ColumnsConfig()) is None
