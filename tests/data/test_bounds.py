"""Data that would fill the memory, hide a second value or swallow an alarm."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignrun.config import BadRows, DataConfig, TooLong
from alignrun.data import opening, tables
from alignrun.data.files import read_rows
from alignrun.data.loading import load_examples
from alignrun.data.templates import write
from alignrun.data.values import LargeRowError
from alignrun.errors import InputError


def config(path: Path, **changes: Any) -> DataConfig:
    return DataConfig(name="jsonl", source="jsonl", path=str(path), eval_fraction=0.5, **changes)


def small_file(folder: Path, name: str, middle: str) -> Path:
    """Twelve short rows, the fifth of which is replaced."""
    rows = [json.dumps({"prompt": f"question {index}"}) for index in range(12)]
    rows[4] = middle
    path = folder / name
    path.write_text("\n".join(rows) if name.endswith("jsonl") else f"[{', '.join(rows)}]", encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "origin"), [("p.jsonl", "p.jsonl:5"), ("p.json", r"p.json\[4\]")])
class TestOneRow:
    def test_a_large_row_is_refused_in_one_line_and_left_out_on_demand(
        self, tmp_path: Path, name: str, origin: str
    ) -> None:
        path = small_file(tmp_path, name, json.dumps({"prompt": "x" * 2000}))
        limited = config(path, max_row_mb=0.001, bad_rows=BadRows.skip)
        with pytest.raises(InputError, match=f"{origin} is larger than data.max_row_mb=0.001.*data.too_long=skip"):
            load_examples(limited)
        loaded = load_examples(replace(limited, too_long=TooLong.skip))
        assert (len(loaded.train) + len(loaded.heldout), loaded.skipped) == (11, 1)

    @pytest.mark.parametrize(
        "row", ['{"prompt": "a", "prompt": "b"}', '{"prompt": [{"role": "user", "role": "tool", "content": "a"}]}']
    )
    def test_a_key_that_an_object_has_twice_makes_a_bad_row(
        self, tmp_path: Path, name: str, origin: str, row: str
    ) -> None:
        path = small_file(tmp_path, name, row)
        with pytest.raises(InputError, match=f"{origin}: an object has the key '(prompt|role)' twice.*bad_rows=skip"):
            load_examples(config(path))
        loaded = load_examples(config(path, bad_rows=BadRows.skip))
        assert (len(loaded.train) + len(loaded.heldout), loaded.skipped) == (11, 1)


def test_a_limit_counts_bytes_and_a_row_of_just_that_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    row = json.dumps({"prompt": "é" * 50}, ensure_ascii=False)
    path.write_text(f"{row}\n{row}", encoding="utf-8")
    size = len(row.encode()) / 1e6
    assert all(isinstance(read, dict) for _, read in read_rows(path, size))
    assert all(isinstance(read, LargeRowError) for _, read in read_rows(path, size - 2e-6))


def test_tools_written_as_json_have_every_key_once(tmp_path: Path) -> None:
    row = {"prompt": "a", "tools": '[{"name": "f", "name": "g"}]'}
    with pytest.raises(InputError, match=r"column 'tools' is not JSON .*the key 'name' twice"):
        load_examples(config(small_file(tmp_path, "p.jsonl", json.dumps(row))))


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.json.gz", "p.csv.gz"])
def test_a_packed_file_is_not_unpacked_beyond_what_texts_pack_to(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "UNPACKED", 100_000)
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"a" * 5_000_000))
    with pytest.raises(InputError, match=f"{name} unpacks to more than 100 times its size"):
        list(read_rows(path))


def test_a_packed_file_that_packs_well_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "Hello"}\n' * 10_000))
    assert len(list(read_rows(path))) == 10_000


def test_large_values_of_a_parquet_file_are_seen_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr(tables, "UNPACKED", 1000)
    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["short", "x" * 5000]}), path)
    first, second = (row for _, row in read_rows(path, 0.001))
    assert first == {"prompt": "short"}
    assert isinstance(second, LargeRowError)


def test_an_alarm_while_a_template_is_filled_in_is_not_taken_for_the_row(
    chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alarm(*_: Any, **__: Any) -> str:
        raise TimeoutError("alarm")

    monkeypatch.setattr(type(chat_tokenizer), "apply_chat_template", alarm)
    with pytest.raises(TimeoutError):
        write(chat_tokenizer, [{"role": "user", "content": "Hello"}], answer=True)
