import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from alignrun.config import BadRows, DataConfig
from alignrun.data.files import read_rows
from alignrun.data.loading import load_in_order
from alignrun.data.shapes import recognised
from alignrun.data.values import BadRowError
from alignrun.errors import InputError


def write(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read_strictly(path: Path) -> None:
    for _, row in read_rows(path):
        if isinstance(row, BadRowError):
            raise row


def file_refusal(path: Path) -> str:
    """The line that refuses the file, or its first bad row."""
    with pytest.raises(InputError) as caught:
        read_strictly(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "P.JSONL"])
def test_lines_are_numbered_from_one_and_blank_ones_skipped(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, '{"a": 1}\r\n\n{"a": "\u2028é"}')
    assert list(read_rows(path)) == [(f"{name}:1", {"a": 1}), (f"{name}:3", {"a": "\u2028é"})]


def test_a_json_list_is_indexed_from_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", '[{"a": 1},\n {"a": 2}]')
    assert list(read_rows(path)) == [("p.json[0]", {"a": 1}), ("p.json[1]", {"a": 2})]


def test_a_json_list_may_be_packed(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json.gz", '[{"a": 1}]')
    assert list(read_rows(path)) == [("p.json.gz[0]", {"a": 1})]


@pytest.mark.parametrize(("name", "separator"), [("p.csv", ","), ("p.tsv", "\t"), ("p.csv.gz", ",")])
def test_tables_of_text(tmp_path: Path, name: str, separator: str) -> None:
    lines = ["\ufeffprompt,score", '"Hello, ""you""\ntwo",1.0', "", f"{'é' * 200_000},"]
    path = write(tmp_path / name, "\r\n".join(line.replace(",", separator) for line in lines))
    assert list(read_rows(path)) == [
        (f"{name}:3", {"prompt": f'Hello{separator} "you"\ntwo', "score": "1.0"}),
        (f"{name}:5", {"prompt": "é" * 200_000, "score": ""}),
    ]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a,b\n1,2,3\n", "p.csv:2 has 3 values, and the first line names 2 columns"),
        ("a,a\n1,2\n", "a column without a name, or two equal ones"),
        ("a,\n1,2\n", "a column without a name"),
        ('a\n"b\n', "is not such a table"),
        (b"a\ncaf\xe9\n", "is not UTF-8"),
        ("a,b\n", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_damaged_tables(tmp_path: Path, content: str | bytes, part: str) -> None:
    assert part in file_refusal(write(tmp_path / "p.csv", content))


def test_parquet(tmp_path: Path) -> None:
    rows = [{"prompt": "Hello?", "chosen": [{"role": "assistant", "content": "Yes."}]}, {"prompt": "b", "chosen": None}]
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert list(read_rows(tmp_path / "p.parquet")) == [("p.parquet[0]", rows[0]), ("p.parquet[1]", rows[1])]
    assert "damaged parquet" in file_refusal(write(tmp_path / "q.parquet", b"PAR1 and no more"))
    assert "there is no file" in file_refusal(tmp_path / "none.parquet")


def test_a_byte_order_mark_is_not_part_of_the_data(tmp_path: Path) -> None:
    assert list(read_rows(write(tmp_path / "p.jsonl", b'\xef\xbb\xbf{"a": 1}\n'))) == [("p.jsonl:1", {"a": 1})]


@pytest.mark.parametrize("name", ["none.jsonl", "none.jsonl.gz", "none.json"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    assert "there is no file" in file_refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["folder.jsonl", "folder.json"])
def test_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert "is a directory" in file_refusal(tmp_path / name)


@pytest.mark.parametrize(("name", "where"), [("p.jsonl", "p.jsonl:2"), ("p.json", "p.json[1]")])
def test_not_utf8(tmp_path: Path, name: str, where: str) -> None:
    rows = [b'{"prompt": "a"}', b'{"prompt": "caf\xe9"}']
    content = b"\n".join(rows) if name == "p.jsonl" else b"[" + b",".join(rows) + b"]"
    message = file_refusal(write(tmp_path / name, content))
    assert f"{where} is not UTF-8" in message


@pytest.mark.parametrize("line", ["{'prompt': 1}", '{"prompt": "a"', "[" * 100_000])
def test_not_json(tmp_path: Path, line: str) -> None:
    assert "p.jsonl:2 is not JSON" in file_refusal(write(tmp_path / "p.jsonl", '{"a": 1}\n' + line))


def test_lines_in_a_json_file_point_to_the_other_name(tmp_path: Path) -> None:
    assert "is named .jsonl" in file_refusal(write(tmp_path / "p.json", '{"a": 1}\n{"a": 2}\n'))


@pytest.mark.parametrize(
    ("value", "kind"), [("[1]", "a list"), ('"a"', "text"), ("null", "null"), ("3", "a number"), ("true", "a bool")]
)
def test_a_row_must_be_an_object(tmp_path: Path, value: str, kind: str) -> None:
    assert f"p.jsonl:1 is {kind}" in file_refusal(write(tmp_path / "p.jsonl", value))
    assert f"p.json[0] is {kind}" in file_refusal(write(tmp_path / "p.json", f"[{value}]"))


def test_a_json_file_must_hold_a_list(tmp_path: Path) -> None:
    assert "holds an object" in file_refusal(write(tmp_path / "p.json", '{"data": []}'))


@pytest.mark.parametrize(
    ("name", "text"), [("p.jsonl", ""), ("p.jsonl", " \n\n"), ("p.jsonl.gz", ""), ("p.json", ""), ("p.json", "[]")]
)
def test_no_rows(tmp_path: Path, name: str, text: str) -> None:
    assert "holds no rows" in file_refusal(write(tmp_path / name, text))


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"prompt": "a"}\n' * 5000)
    for content in (whole[:-20], b'{"prompt": "never compressed"}\n', whole[:30] + b"\x00" * 30 + whole[60:]):
        (tmp_path / "p.jsonl.gz").write_bytes(content)
        assert "damaged gzip" in file_refusal(tmp_path / "p.jsonl.gz")


def test_unknown_kind(tmp_path: Path) -> None:
    assert ".jsonl, .json, .csv or .tsv (each also .gz), or .parquet" in file_refusal(
        write(tmp_path / "p.txt", "prompt\nHello\n")
    )


@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{\'prompt\': 1}\n["b"]\n{"prompt": "caf\xe9"}\n{"prompt": "c"}\n', 3),
        ("p.json", b'[{"prompt": "a"}, 3, {"prompt": "caf\xe9"}, {"prompt": "c"}]', 2),
        ("p.csv", b"prompt,score\na,1\nb,2,3\nc,\n", 1),
    ],
)
def test_rows_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path, name: str, content: bytes, bad: int) -> None:
    """As `data.bad_rows=skip` promises; by default the first of them ends the run, with that advice."""
    path = write(tmp_path / name, content)
    config = DataConfig(name="jsonl", source="jsonl", path=str(path), eval_fraction=0.01, bad_rows=BadRows.skip)
    ordered = load_in_order(config)
    assert [example.prompt for example in ordered.examples] == ["a", "c"]
    assert ordered.skipped == bad
    with pytest.raises(InputError, match=f"{name}.*data.bad_rows=skip leaves such rows out"):
        load_in_order(replace(config, bad_rows=BadRows.error))


def test_the_layout_is_that_of_the_first_row_that_can_be_read(tmp_path: Path) -> None:
    row = '{"question": "a", "response_A": "b", "response_B": "c", "label": "A>B"}'
    path = write(tmp_path / "p.jsonl", f"not JSON\n{row}\n")
    config = DataConfig(name="jsonl", source="jsonl", path=str(path), bad_rows=BadRows.skip)
    assert recognised(config)[1] == "JudgeBench"
