"""Rows as people have them: each layout is read as the same row in this project's own columns."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import encoding_of
from hypothesis import given
from hypothesis import strategies as st

from alignrun.config import BadRows, ColumnsConfig, DataConfig
from alignrun.data.columns import unread_columns
from alignrun.data.files import read_rows
from alignrun.data.loading import load_examples
from alignrun.data.pairs import encode_policy_pair
from alignrun.data.plain import RowReader
from alignrun.data.records import parse_row
from alignrun.data.store import record_of
from alignrun.data.values import BadRowError
from alignrun.errors import InputError
from alignrun.types import Example

COLUMNS = ColumnsConfig()
TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def parse(row: dict[str, Any], **columns: Any) -> Example:
    return parse_row(row, "r:1", ColumnsConfig(**columns))


def refusal(row: dict[str, Any], **columns: Any) -> str:
    with pytest.raises(InputError) as caught:
        parse(row, **columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(TEXT, st.one_of(st.none(), st.just(""), TEXT), TEXT, st.one_of(st.none(), TEXT))
def test_alpaca(instruction: str, more: str | None, output: str, system: str | None) -> None:
    row = {"instruction": instruction, "input": more, "output": output, "system": system}
    asked = instruction if more is None or not more.strip() else f"{instruction}\n\n{more}"
    own = {"prompt": asked, "completion": output, "system": system}
    assert parse(row) == parse(own)
    assert RowReader(COLUMNS)(row, "r:1") == record_of(parse(own))
    assert unread_columns(row, COLUMNS) == []


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.one_of(st.none(), TEXT))
def test_sharegpt(exchanges: list[tuple[str, str]], system: str | None) -> None:
    turns = [{"role": "system", "content": system}] if system else []
    for asked, said in exchanges:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    spelled = [{"from": SHAREGPT[turn["role"]], "value": turn["content"]} for turn in turns]
    assert parse({"conversations": spelled}) == parse({"messages": turns})


def test_names_that_the_row_or_the_configuration_gives_come_first() -> None:
    row = {"instruction": "a", "input": "", "output": "b"}
    assert parse(row | {"prompt": "p", "completion": "c"}) == Example("p", "r:1", "c")
    assert parse(row | {"completion": "c"}) == Example("a", "r:1", "c")
    assert parse(row | {"other": "c"}, completion="other") == Example("a", "r:1", "c")
    assert "no column 'question'" in refusal(row, prompt="question")
    assert parse({"instruction": "a", "chosen": "b", "rejected": "c"}) == Example("a", "r:1", "b", "c")


def test_functions_of_sharegpt_are_tool_calls() -> None:
    call = {"name": "look", "arguments": {"place": "Rome"}}
    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "Sunny."},
    ]
    example = parse({"conversations": turns, "tools": json.dumps([{"name": "look"}])})
    assert example.prompt[1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": call}],
    }
    assert example.prompt[2] == {"role": "tool", "content": "sunny"}
    assert (example.chosen, example.tools) == ("Sunny.", ({"name": "look"},))
    for wrong in ("look()", "[]", '{"arguments": {}}', "3"):
        turns[1]["value"] = wrong
        assert "message 2 calls a function" in refusal({"conversations": turns})


@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_what_people_did_not_like_is_never_a_demonstration(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completion": f"c{n}", name: n % 3 == 0} for n in range(60)]
    message = refusal(rows[1])
    assert f"column '{name}' is false" in message
    assert "algo=sft takes the liked ones, and algo=dpo pairs" in message
    path = tmp_path / "kto.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_examples(DataConfig(name="x", source="jsonl", path=str(path), bad_rows=BadRows.skip))
    kept = {example.chosen for example in [*loaded.train, *loaded.heldout]}
    assert kept == {f"c{n}" for n in range(0, 60, 3)}
    assert loaded.skipped == 40
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    with pytest.raises(InputError, match=r"rows: 1, 2 left out, as kto\.jsonl:2 has a completion that people"):
        load_examples(DataConfig(name="x", source="jsonl", path=str(path), bad_rows=BadRows.skip))


@pytest.mark.parametrize("last", ["assistant", "user"])
@pytest.mark.parametrize("transcript", [True, False])
def test_no_user_turn_after_an_early_fork_is_trained_on(chat_tokenizer: Any, last: str, transcript: bool) -> None:
    def side(first: str) -> Any:
        more = [("user", "more?"), ("assistant", "more.")][: 2 if last == "assistant" else 1]
        turns = [("user", "Q"), ("assistant", first), *more]
        names = {"user": "Human", "assistant": "Assistant"}
        if transcript:
            return "".join(f"\n\n{names[role]}: {text}" for role, text in turns)
        return [{"role": role, "content": text} for role, text in turns]

    row = {"chosen": side("good"), "rejected": side("bad")}
    if last == "user" and not transcript:
        assert "must be text or end in one assistant message" in refusal(row)
        return
    with pytest.raises(BadRowError, match="sides part before the last turn"):
        encode_policy_pair(encoding_of(chat_tokenizer))(parse(row))


def test_messages_in_a_table_of_texts(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": 'He said "a, b".\nAnd?'}, {"role": "assistant", "content": "Fine."}]
    rows = [{"messages": turns}, {"messages": turns[0]}]
    quoted = [json.dumps(row["messages"]).replace('"', '""') for row in rows]
    path = tmp_path / "p.csv"
    path.write_text("messages\n" + "".join(f'"{text}"\n' for text in quoted))
    assert [row for _, row in read_rows(path)] == rows
    for text in ("[1, 2]", "{}", '{"a": 1}', "[{'a': 1}]", "plain", "[{'role': 'user'}] is a list"):
        path.write_text('messages\n"{}"\n'.format(text.replace('"', '""')))
        assert list(read_rows(path)) == [("p.csv:2", {"messages": text})]
    printed = str(turns).replace('"', '""')
    path.write_text(f'messages\n"{printed}"\n')
    ((_, bad),) = read_rows(path)
    assert isinstance(bad, BadRowError)
    assert "p.csv:2 holds messages that are not JSON" in str(bad)
    assert "Parquet" in str(bad)


@pytest.mark.parametrize("text", ["[" + " " * 300_000 + "x", " " * 300_000 + "x", "[{'role': " + "] " * 200_000 + "x"])
def test_a_cell_is_looked_at_in_time_that_grows_with_its_length(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f'messages\n"{text}"\n')
    started = time.perf_counter()
    assert list(read_rows(path)) == [("p.csv:2", {"messages": text})]
    assert time.perf_counter() - started < 5


def test_a_cell_that_is_nested_deeply_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    text = '[{"role": ' + "[" * 100_000 + "]" * 100_000 + "}]"
    path.write_text('messages\n"{}"\n'.format(text.replace('"', '""')))
    ((_, bad),) = read_rows(path)
    assert "p.csv:2 holds messages that are not JSON" in str(bad)


def saved(folder: Path, rows: list[dict[str, Any]], **state: Any) -> Path:
    """A folder as `save_to_disk` writes it, by hand: two shards, each in the stream format of Arrow."""
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    table, names = pyarrow.Table.from_pylist(rows), []
    for place, part in enumerate((table.slice(0, 1), table.slice(1))):
        names.append(f"data-{place:05d}-of-00002.arrow")
        with pyarrow.ipc.new_stream(str(folder / names[-1]), table.schema) as writer:
            writer.write_table(part)
    found = {"_data_files": [{"filename": name} for name in names], "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(found))
    return folder


ROWS = [{"prompt": f"p{n}", "chosen": [{"role": "assistant", "content": "yes"}], "rejected": None} for n in range(3)]


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mine" / "train", ROWS)
    assert list(read_rows(folder)) == [(f"train[{n}]", row) for n, row in enumerate(ROWS)]
    (tmp_path / "mine" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match=r"holds the splits train; name one, as data\.path=.*mine/train"):
        list(read_rows(tmp_path / "mine"))
    hub = DataConfig(name="hub", source="hub", path=str(folder))
    with pytest.raises(InputError, match="data=jsonl reads"):
        load_examples(hub)


def test_the_library_writes_such_a_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).select([2, 0]).save_to_disk(str(tmp_path / "d"), num_shards=2)
    assert [row for _, row in read_rows(tmp_path / "d")] == [ROWS[2], ROWS[0]]


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({"_data_files": [{"filename": "../secret.arrow"}]}, "files of another place"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "files of another place"),
        ({"_indices_files": [{"filename": "indices.arrow"}]}, "files of another place"),
        ({"_data_files": [{}]}, "does not name the files"),
        ({"_data_files": 3}, "does not name the files"),
        ({"_data_files": [{"filename": "none.arrow"}]}, "there is no file"),
        ({"_data_files": [{"filename": "state.json"}]}, "damaged Arrow file"),
        ({"_data_files": []}, "holds no rows"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, state: dict[str, Any], part: str) -> None:
    folder = saved(tmp_path / "d", ROWS, **state)
    with pytest.raises(InputError) as caught:
        list(read_rows(folder))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
