"""What a row says is used or refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignrun.config import BadRows, ColumnsConfig, DataConfig
from alignrun.data.loading import load_examples
from alignrun.data.records import parse_row
from alignrun.errors import InputError
from alignrun.types import Example

COLUMNS = ColumnsConfig()
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hello?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "look"}}]}
PAIR = {"prompt": "Hello?", "chosen": "Yes.", "rejected": "No."}


def parse(row: dict[str, Any], **columns: Any) -> Example:
    return parse_row(row, "p.jsonl:7", ColumnsConfig(**columns))


def refusal(row: dict[str, Any], **columns: Any) -> str:
    with pytest.raises(InputError) as caught:
        parse(row, **columns)
    message = str(caught.value)
    assert "\n" not in message
    assert "p.jsonl:7" in message
    return message


class TestSystem:
    @pytest.mark.parametrize(
        "row",
        [
            PAIR | {"system": "Be brief."},
            {"chosen": [USER, YES], "rejected": [USER, NO], "system": "Be brief."},
            PAIR | {"chosen": [USER, YES], "rejected": [NO], "system": "Be brief."},
            PAIR | {"chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]},
            PAIR | {"chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO], "system": "Be brief."},
            {"prompt": [SYSTEM, USER], "chosen": "Yes.", "rejected": "No.", "system": "Be brief."},
        ],
    )
    def test_a_pair(self, row: dict[str, Any]) -> None:
        example = parse(row)
        assert (example.prompt, example.chosen, example.rejected) == ((SYSTEM, USER), "Yes.", "No.")

    def test_demonstrations_and_prompts(self) -> None:
        for row in ({"prompt": "Hello?", "completion": "Yes."}, {"messages": [USER, YES]}, {"prompt": "Hello?"}):
            assert parse(row | {"system": "Be brief."}).prompt == (SYSTEM, USER)
            for nothing in ("", None):
                assert parse(row | {"system": nothing}).text == "Hello?"
        row = {"prompt": "Hello?", "rules": "Be brief."}
        assert parse(row, system="rules").prompt == (SYSTEM, USER)

    def test_refusals(self) -> None:
        assert "data.columns.system=system_prompt" in refusal(PAIR | {"system_prompt": "Be brief."})
        assert "differs from the system turn" in refusal({"prompt": [SYSTEM, USER], "system": "Be long."})
        assert "column 'system' is a number" in refusal(PAIR | {"system": 3})
        assert "no column 'rules'" in refusal(PAIR, system="rules")
        assert "data.columns.ignored=[system]" in refusal(PAIR | {"system": "Be brief."}, system=None)
        assert parse(PAIR | {"system": "Be brief."}, system=None, ignored=["system"]).prompt == "Hello?"


class TestLiked:
    @pytest.mark.parametrize("row", [{"prompt": "Hello?", "completion": [YES]}, {"messages": [USER, YES]}])
    @pytest.mark.parametrize("columns", [{}, {"label": "label"}])
    def test_only_what_people_liked_is_a_demonstration(self, row: dict[str, Any], columns: dict[str, str]) -> None:
        for liked in (True, 1, "true", "1"):
            assert parse(row | {"label": liked}, **columns).chosen == "Yes."
        for liked in (False, 0, "False", "0"):
            assert "people did not like" in refusal(row | {"label": liked}, **columns)
        assert "must be true or false" in refusal(row | {"label": "sports"}, **columns)

    def test_a_label_of_ones_own_name_and_one_that_is_ignored(self) -> None:
        row = {"prompt": "Hello?", "completion": "Yes.", "good": False}
        assert "column 'good' is false" in refusal(row, label="good")
        assert parse(row | {"label": "sports"}, ignored=["label"]).chosen == "Yes."
        assert parse({"prompt": "Hello?", "label": 3}).text == "Hello?"  # the class of a text is no verdict

    def test_they_can_be_left_out(self, tmp_path: Path) -> None:
        rows = [
            {"prompt": f"prompt {place}", "completion": f"{liked}", "label": liked}
            for place, liked in ((0, True), (1, False), (19, True))
        ]
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
        options: Any = {"name": "x", "source": "jsonl", "path": str(tmp_path / "p.jsonl")}
        loaded = load_examples(DataConfig(**options, bad_rows=BadRows.skip))
        assert {example.chosen for example in [*loaded.train, *loaded.heldout]} == {"True"}
        assert loaded.skipped == 1

    def test_the_label_of_a_pair_must_be_named(self) -> None:
        assert "data.columns.label=label" in refusal(PAIR | {"label": 0.2})
        assert parse(PAIR | {"label": 0.2}, label="label").chosen == "No."
        assert parse(PAIR | {"label": 0.2}, ignored=["label"]).chosen == "Yes."


@pytest.mark.parametrize(
    ("column", "value", "part"),
    [
        ("images", ["a.png"], "reads text"),
        ("audio", {"bytes": ""}, "reads text"),
        ("weight", 0.5, "has the same weight"),
        ("context", "A text.", "data.columns.input=context"),
        ("input", "A text.", "data.columns.input=input"),
        ("history", [["a", "b"]], "turns before the prompt"),
        ("functions", [{"name": "look"}], "data.columns.tools=functions"),
    ],
)
def test_columns_that_change_the_meaning(column: str, value: Any, part: str) -> None:
    message = refusal(PAIR | {column: value})
    assert f"column '{column}', which is not read" in message
    assert part in message
    assert f"data.columns.ignored=[{column}]" in message
    assert parse(PAIR | {column: value}, ignored=[column]).chosen == "Yes."
    for nothing in (None, "", " ", [], {}):
        assert parse(PAIR | {column: nothing}).chosen == "Yes."


def test_a_weight_of_one_says_nothing() -> None:
    assert parse(PAIR | {"weight": 1.0}).chosen == "Yes."
    assert "weight of 0" in refusal({"messages": [USER, YES | {"weight": 0}]})


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "prompt 0", "answer": "1", "id": 3, "row_id": 4}\n{"prompt": "prompt 19", "b": 1}\n')
    config = DataConfig(name="x", source="jsonl", path=str(path))
    assert load_examples(config).notes == ("columns that are not read: answer, b",)
    assert load_examples(config, wanted={"answer"}).notes == ("columns that are not read: b",)
    assert load_examples(config, wanted=None).notes == ()


def test_columns_that_a_preference_reads_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "Hello?", "answer": "1", "more": [1, {"a": null}], "b": 2}\n')
    config = DataConfig(name="x", source="jsonl", path=str(path), eval_path=str(path))
    plain = load_examples(config)
    assert plain.train[0].columns is None
    named, whole = load_examples(config, {"answer", "c"}), load_examples(config, None)
    assert named.train[0].columns == {"answer": "1"}
    assert whole.train[0].columns == {"answer": "1", "more": [1, {"a": None}], "b": 2}
    ignoring = replace(config, columns=ColumnsConfig(ignored=["b"]))
    assert "b" not in (load_examples(ignoring, None).train[0].columns or {})
    assert load_examples(ignoring, {"b"}).train[0].columns == {"b": 2}
    assert len({loaded.train.digest for loaded in (plain, named, whole)}) == 3


class TestMessages:
    def test_the_form_of_sharegpt(self) -> None:
        asked, good = [{"from": "human", "value": "Hello?"}], {"from": "gpt", "value": "Yes."}
        example = parse({"conversations": asked, "chosen": good, "rejected": {"from": "gpt", "value": "No."}})
        assert (example.prompt, example.chosen, example.rejected) == ((USER,), "Yes.", "No.")
        opening = {"from": "system", "value": "Be brief."}
        example = parse({"conversations": [opening, *asked, good]})
        assert (example.prompt, example.chosen) == ((SYSTEM, USER), "Yes.")
        assert parse({"conversations": asked}, prompt="conversations").prompt == (USER,)

    def test_roles_of_sharegpt(self) -> None:
        example = parse({"messages": [{"role": "human", "content": "Hello?"}, {"role": "gpt", "content": "Yes."}]})
        assert (example.prompt, example.chosen) == ((USER,), "Yes.")

    def test_one_message_without_a_list(self) -> None:
        assert parse({"prompt": USER, "chosen": YES, "rejected": NO}).prompt == (USER,)
        assert parse(PAIR | {"chosen": YES}).chosen == "Yes."

    def test_content_in_parts(self) -> None:
        parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo?", "image_url": None}]
        assert parse({"prompt": [{"role": "user", "content": parts}]}).prompt == (USER,)
        picture = [*parts, {"type": "image", "image": "a.png"}]
        assert "message 1, part 3 is of type 'image'" in refusal({"prompt": [{"role": "user", "content": picture}]})
        assert "'images'" in refusal({"prompt": [USER | {"images": ["a.png"]}]})

    def test_tools_and_their_calls(self) -> None:
        result, tools = {"role": "tool", "content": "sunny", "name": "look"}, [{"name": "look", "strict": None}]
        row = {"prompt": [USER, CALL, result], "chosen": [YES], "rejected": "No."}
        example = parse(row | {"tools": tools})
        assert (example.prompt, example.tools) == ((USER, CALL, result), ({"name": "look"},))
        assert "look" in example.text.split("\n\n")[1]
        assert parse(row | {"tools": json.dumps(tools)}).tools == ({"name": "look"},)
        assert parse(row | {"tools": None}).tools == ()
        assert "give the tools as a list" in refusal(row | {"tools": "look"})
        answer = parse({"prompt": "Hello?", "completion": [CALL]})
        assert answer.chosen_turns == (CALL,)
        assert "look" in str(answer.chosen)

    @pytest.mark.parametrize("prompt", [{}, {"prompt": "Hello?"}, {"prompt": [USER]}])
    def test_sides_that_part_early_keep_all_turns(self, prompt: dict[str, Any]) -> None:
        sides = {side: [USER, answer, USER, YES] for side, answer in (("chosen", YES), ("rejected", NO))}
        example = parse(prompt | sides)
        assert example.text == "Hello?"
        assert (example.chosen_turns, example.rejected_turns) == ((YES, USER, YES), (NO, USER, YES))
        assert example.rejected == "No.\n\nHuman: Hello?\n\nAssistant: Yes."
        swapped = parse(prompt | sides | {"p": 0.1}, label="p")
        assert (swapped.chosen_turns, swapped.rejected_turns) == (example.rejected_turns, example.chosen_turns)

    def test_transcripts_that_part_early_are_turns_too(self) -> None:
        opening = "\n\nHuman: Hello?\n\nAssistant:"
        row = {"chosen": f"{opening} Yes.\n\nHuman: Hello?\n\nAssistant: No.", "rejected": f"{opening} No."}
        assert parse(row).chosen_turns == (YES, USER, NO)
        assert parse(row | {"chosen": f"{opening} Yes.\n\nHuman: Hello?"}).chosen_turns == (YES, USER)

    def test_a_question_in_another_column_is_named(self) -> None:
        assert "data.columns.prompt=question" in refusal({"question": "Hello?", "chosen": "Yes.", "rejected": "No."})
