import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from alignrun.config import ColumnsConfig
from alignrun.data import parse_row, read_rows
from alignrun.errors import InputError

COLUMNS = ColumnsConfig()
USER = {"role": "user", "content": "Hello?"}
ANSWER = {"role": "assistant", "content": "Yes."}
OTHER = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}


def write(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def refusal(row: dict[str, Any], columns: ColumnsConfig = COLUMNS) -> str:
    with pytest.raises(InputError) as caught:
        parse_row(row, "p.jsonl:7", columns)
    message = str(caught.value)
    assert "\n" not in message
    assert "p.jsonl:7" in message
    return message


def file_refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(read_rows(path))
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


class TestReadRows:
    @pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "P.JSONL"])
    def test_lines_are_numbered_from_one_and_blank_ones_skipped(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path / name, '{"a": 1}\r\n\n{"a": "\u2028é"}')
        assert list(read_rows(path)) == [(f"{name}:1", {"a": 1}), (f"{name}:3", {"a": "\u2028é"})]

    def test_a_json_list_is_indexed_from_zero(self, tmp_path: Path) -> None:
        path = write(tmp_path / "p.json", '[{"a": 1},\n {"a": 2}]')
        assert list(read_rows(path)) == [("p.json[0]", {"a": 1}), ("p.json[1]", {"a": 2})]

    def test_a_byte_order_mark_is_not_part_of_the_data(self, tmp_path: Path) -> None:
        assert list(read_rows(write(tmp_path / "p.jsonl", b'\xef\xbb\xbf{"a": 1}\n'))) == [("p.jsonl:1", {"a": 1})]

    @pytest.mark.parametrize("name", ["none.jsonl", "none.jsonl.gz", "none.json"])
    def test_missing_file(self, tmp_path: Path, name: str) -> None:
        assert "there is no file" in file_refusal(tmp_path / name)

    @pytest.mark.parametrize("name", ["folder.jsonl", "folder.json"])
    def test_directory(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).mkdir()
        assert "is a directory" in file_refusal(tmp_path / name)

    @pytest.mark.parametrize(("name", "where"), [("p.jsonl", "p.jsonl:2"), ("p.json", "p.json")])
    def test_not_utf8(self, tmp_path: Path, name: str, where: str) -> None:
        message = file_refusal(write(tmp_path / name, b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n'))
        assert f"{where} is not UTF-8" in message

    @pytest.mark.parametrize("line", ["{'prompt': 1}", '{"prompt": "a"', "[" * 100_000])
    def test_not_json(self, tmp_path: Path, line: str) -> None:
        assert "p.jsonl:2 is not JSON" in file_refusal(write(tmp_path / "p.jsonl", '{"a": 1}\n' + line))

    def test_lines_in_a_json_file_point_to_the_other_name(self, tmp_path: Path) -> None:
        assert "is named .jsonl" in file_refusal(write(tmp_path / "p.json", '{"a": 1}\n{"a": 2}\n'))

    @pytest.mark.parametrize(
        ("value", "kind"), [("[1]", "a list"), ('"a"', "text"), ("null", "null"), ("3", "a number"), ("true", "a bool")]
    )
    def test_a_row_must_be_an_object(self, tmp_path: Path, value: str, kind: str) -> None:
        assert f"p.jsonl:1 is {kind}" in file_refusal(write(tmp_path / "p.jsonl", value))
        assert f"p.json[0] is {kind}" in file_refusal(write(tmp_path / "p.json", f"[{value}]"))

    def test_a_json_file_must_hold_a_list(self, tmp_path: Path) -> None:
        assert "holds an object" in file_refusal(write(tmp_path / "p.json", '{"data": []}'))

    @pytest.mark.parametrize(
        ("name", "text"), [("p.jsonl", ""), ("p.jsonl", " \n\n"), ("p.jsonl.gz", ""), ("p.json", ""), ("p.json", "[]")]
    )
    def test_no_rows(self, tmp_path: Path, name: str, text: str) -> None:
        assert "holds no rows" in file_refusal(write(tmp_path / name, text))

    def test_damaged_gzip(self, tmp_path: Path) -> None:
        whole = gzip.compress(b'{"prompt": "a"}\n' * 5000)
        for content in (whole[:-20], b'{"prompt": "never compressed"}\n', whole[:30] + b"\x00" * 30 + whole[60:]):
            (tmp_path / "p.jsonl.gz").write_bytes(content)
            assert "damaged gzip" in file_refusal(tmp_path / "p.jsonl.gz")

    def test_unknown_kind(self, tmp_path: Path) -> None:
        assert ".jsonl.gz or .json" in file_refusal(write(tmp_path / "p.csv", "prompt\nHello\n"))


class TestParseRow:
    def test_prompt_alone(self) -> None:
        example = parse_row({"prompt": " Hello? ", "id": 3}, "p:1", COLUMNS)
        assert (example.prompt, example.origin, example.chosen, example.rejected) == (" Hello? ", "p:1", None, None)

    def test_conversation_keeps_role_and_content_only(self) -> None:
        row = {"prompt": [SYSTEM, {**USER, "name": "Ann", "tool_calls": None}]}
        assert parse_row(row, "p:1", COLUMNS).prompt == (SYSTEM, USER)

    def test_columns_by_name(self) -> None:
        columns = ColumnsConfig(prompt="q", chosen="good", rejected="bad")
        example = parse_row({"q": "Hello?", "good": "Yes.", "bad": "", "chosen": 0}, "p:1", columns)
        assert (example.prompt, example.chosen, example.rejected) == ("Hello?", "Yes.", "")

    @pytest.mark.parametrize("prompt", ["Hello?", [USER]])
    @pytest.mark.parametrize("chosen", ["Yes.", [ANSWER], [USER, ANSWER]])
    def test_explicit_prompt_with_every_form_of_completion(self, prompt: Any, chosen: Any) -> None:
        example = parse_row({"prompt": prompt, "chosen": chosen, "rejected": "No."}, "p:1", COLUMNS)
        assert (example.text, example.chosen, example.rejected) == ("Hello?", "Yes.", "No.")

    def test_implicit_prompt_of_conversations(self) -> None:
        row = {"chosen": [SYSTEM, USER, ANSWER, USER, ANSWER], "rejected": [SYSTEM, USER, ANSWER, USER, OTHER]}
        example = parse_row(row, "p:1", COLUMNS)
        assert example.prompt == (SYSTEM, USER, ANSWER, USER)
        assert (example.chosen, example.rejected) == ("Yes.", "No.")

    def test_implicit_prompt_of_equal_conversations_leaves_a_completion(self) -> None:
        example = parse_row({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "p:1", COLUMNS)
        assert (example.prompt, example.chosen, example.rejected) == ((USER,), "Yes.", "Yes.")

    def test_transcripts(self) -> None:
        opening = "\n\nHuman: One\n\ntwo?\n\nAssistant: Three.\n\nHuman: Four?\n\nAssistant:"
        example = parse_row({"chosen": opening + " Yes.", "rejected": opening}, "p:1", COLUMNS)
        assert example.prompt == (
            {"role": "user", "content": "One\n\ntwo?"},
            {"role": "assistant", "content": "Three."},
            {"role": "user", "content": "Four?"},
        )
        assert (example.chosen, example.rejected) == ("Yes.", "")

    def test_transcript_without_the_leading_blank_line(self) -> None:
        row = {"chosen": "Human: Hello?\n\nAssistant: Yes.", "rejected": "Human: Hello?\n\nAssistant: No."}
        assert parse_row(row, "p:1", COLUMNS).prompt == (USER,)

    def test_transcript_in_which_one_side_speaks_twice(self) -> None:
        opening = "\n\nHuman: One\n\nHuman: two?\n\nAssistant:"
        row = {"chosen": opening + " Three.\n\nAssistant: Four.", "rejected": opening + " Three."}
        example = parse_row(row, "p:1", COLUMNS)
        assert example.prompt == ({"role": "user", "content": "One\n\ntwo?"},)
        assert (example.chosen, example.rejected) == ("Three.\n\nFour.", "Three.")

    def test_transcripts_that_part_early_keep_the_later_turns(self) -> None:
        opening = "\n\nHuman: Hello?\n\nAssistant:"
        row = {"chosen": opening + " Yes.\n\nHuman: Sure?\n\nAssistant: Sure.", "rejected": opening + " No."}
        example = parse_row(row, "p:1", COLUMNS)
        assert example.prompt == (USER,)
        assert (example.chosen, example.rejected) == ("Yes.\n\nHuman: Sure?\n\nAssistant: Sure.", "No.")

    def test_transcripts_that_part_at_a_question(self) -> None:
        opening = "\n\nHuman: Hello?\n\nAssistant: Yes."
        row = {side: f"{opening}\n\nHuman: {side}?\n\nAssistant: No." for side in ("chosen", "rejected")}
        example = parse_row(row, "p:1", COLUMNS)
        assert example.prompt == (USER,)
        assert example.chosen == "Yes.\n\nHuman: chosen?\n\nAssistant: No."

    def test_missing_prompt_names_the_columns_and_a_likely_one(self) -> None:
        message = refusal({"input": "", "instruction": "Hello?", "response1": "Yes."})
        assert "no column 'prompt' (columns: input, instruction, response1)" in message
        assert "data.columns.prompt=instruction" in message
        assert "data.columns.prompt=..." in refusal({"a": "Hello?"})
        assert "(columns: none)" in refusal({})

    def test_a_named_prompt_column_is_never_replaced_by_an_implicit_one(self) -> None:
        row = {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}
        assert "no column 'question'" in refusal(row, ColumnsConfig(prompt="question"))

    @pytest.mark.parametrize(("present", "absent"), [("chosen", "rejected"), ("rejected", "chosen")])
    def test_half_a_pair(self, present: str, absent: str) -> None:
        assert f"data.columns.{absent}=" in refusal({"prompt": "Hello?", present: "Yes."})

    @pytest.mark.parametrize(
        ("value", "kind"), [(None, "null"), (3, "a number"), (True, "a boolean"), ({"text": "x"}, "an object")]
    )
    def test_wrong_types(self, value: Any, kind: str) -> None:
        assert f"column 'prompt' is {kind}" in refusal({"prompt": value})
        assert f"column 'rejected' is {kind}" in refusal({"prompt": "a", "chosen": "b", "rejected": value})
        assert f"message 2 has {kind}" in refusal({"prompt": [USER, {"role": "user", "content": value}]})
        assert f"message 1 is {kind}" in refusal({"prompt": [value]})

    def test_a_message_with_other_keys(self) -> None:
        assert "message 1 is an object of from, value" in refusal({"prompt": [{"from": "human", "value": "Hello?"}]})

    @pytest.mark.parametrize("role", ["bot", "", None, ["user"]])
    def test_unknown_role(self, role: Any) -> None:
        message = refusal({"prompt": [{"role": role, "content": "Hello?"}]})
        assert "message 1 has the unknown role" in message
        assert "system, user, assistant" in message

    @pytest.mark.parametrize("prompt", ["", " \n\t", "\u00a0", [{"role": "user", "content": " "}]])
    def test_empty_prompt(self, prompt: Any) -> None:
        assert "empty prompt" in refusal({"prompt": prompt})

    def test_empty_prompt_in_transcripts(self) -> None:
        row = {"chosen": "\n\nHuman: \n\nAssistant: a", "rejected": "\n\nHuman: \n\nAssistant: b"}
        assert "empty prompt" in refusal(row)

    def test_empty_list(self) -> None:
        assert "column 'prompt' is an empty list" in refusal({"prompt": []})

    @pytest.mark.parametrize("last", [ANSWER, SYSTEM])
    def test_a_prompt_must_end_with_the_user(self, last: dict[str, str]) -> None:
        assert f"ends with the {last['role']}" in refusal({"prompt": [USER, last]})

    @pytest.mark.parametrize("chosen", [[USER], [OTHER, ANSWER], [SYSTEM, ANSWER], [USER, ANSWER, USER, ANSWER]])
    def test_a_completion_must_be_one_answer_to_the_prompt(self, chosen: Any) -> None:
        assert "column 'chosen'" in refusal({"prompt": "Hello?", "chosen": chosen, "rejected": "No."})

    def test_pairs_without_a_common_prompt(self) -> None:
        elsewhere = {"role": "user", "content": "Goodbye?"}
        assert "do not open" in refusal({"chosen": [USER, ANSWER], "rejected": [elsewhere, ANSWER]})
        assert "do not open" in refusal({"chosen": [USER], "rejected": [USER]})
        assert "do not open" in refusal({"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: c\n\nAssistant: b"})
        assert "no transcript" in refusal({"chosen": "Yes.", "rejected": "No."})
        headed = "Note\n\nHuman: a\n\nAssistant: b"
        assert "no transcript" in refusal({"chosen": headed, "rejected": headed})
        assert "both alike" in refusal({"chosen": [USER, ANSWER], "rejected": "No."})

    def test_half_a_surrogate_pair(self) -> None:
        assert "surrogate" in refusal(json.loads('{"prompt": "\\ud83d"}'))
        assert parse_row(json.loads('{"prompt": "\\ud83d\\ude00"}'), "p:1", COLUMNS).prompt == "\U0001f600"


@pytest.mark.skipif("ALIGNRUN_HUMAN_DATA" not in os.environ, reason="needs ALIGNRUN_HUMAN_DATA")
class TestHumanData:
    @property
    def folder(self) -> Path:
        return Path(os.environ["ALIGNRUN_HUMAN_DATA"])

    def test_every_hh_rlhf_row_parses(self) -> None:
        rows = list(read_rows(self.folder / "hh_rlhf_harmless_base_test.jsonl.gz"))
        assert len(rows) == 2312
        for origin, row in rows:
            example = parse_row(row, origin, COLUMNS)
            roles = [turn["role"] for turn in example.prompt]  # type: ignore[index]
            assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
            assert roles[-1] == "user"
            for side, text in (("chosen", example.chosen), ("rejected", example.rejected)):
                assert text is not None
                assert row[side].endswith(text) or "\n\nAssistant:" in row[side][-len(text) - 30 :]
                assert example.prompt[-1]["content"] in row[side]  # type: ignore[index]

    def test_pandalm_needs_a_column(self) -> None:
        rows = list(read_rows(self.folder / "pandalm_human_testset.json"))
        assert len(rows) == 999
        with pytest.raises(InputError, match=r"json\[0\] has no column 'prompt' .*data\.columns\.prompt=instruction"):
            parse_row(rows[0][1], rows[0][0], COLUMNS)
        columns = ColumnsConfig(prompt="instruction")
        # Row 466 has no instruction in the file itself.
        with pytest.raises(InputError, match=r"json\[466\] has an empty prompt"):
            parse_row(rows[466][1], rows[466][0], columns)
        for origin, row in rows[:466] + rows[467:]:
            assert parse_row(row, origin, columns).prompt == row["instruction"]
