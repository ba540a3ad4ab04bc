import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignrun.config import ColumnsConfig
from alignrun.data.files import read_rows
from alignrun.data.records import parse_row
from alignrun.errors import InputError

COLUMNS = ColumnsConfig()
USER = {"role": "user", "content": "Hello?"}
ANSWER = {"role": "assistant", "content": "Yes."}
OTHER = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}


def refusal(row: dict[str, Any], columns: ColumnsConfig = COLUMNS) -> str:
    with pytest.raises(InputError) as caught:
        parse_row(row, "p.jsonl:7", columns)
    message = str(caught.value)
    assert "\n" not in message
    assert "p.jsonl:7" in message
    return message


class TestParseRow:
    def test_prompt_alone(self) -> None:
        example = parse_row({"prompt": " Hello? ", "id": 3}, "p:1", COLUMNS)
        assert (example.prompt, example.origin, example.chosen, example.rejected) == (" Hello? ", "p:1", None, None)

    def test_a_message_keeps_what_templates_read(self) -> None:
        row = {"prompt": [SYSTEM, {**USER, "name": "Ann", "id": 3, "tool_calls": None}]}
        assert parse_row(row, "p:1", COLUMNS).prompt == (SYSTEM, {**USER, "name": "Ann"})

    def test_columns_by_name(self) -> None:
        columns = ColumnsConfig(prompt="q", chosen="good", rejected="bad")
        example = parse_row({"q": "Hello?", "good": "Yes.", "bad": "No.", "chosen": 0}, "p:1", columns)
        assert (example.prompt, example.chosen, example.rejected) == ("Hello?", "Yes.", "No.")

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

    def test_transcripts(self) -> None:
        opening = "\n\nHuman: One\n\ntwo?\n\nAssistant: Three.\n\nHuman: Four?\n\nAssistant:"
        example = parse_row({"chosen": opening + " Yes.", "rejected": opening + " No."}, "p:1", COLUMNS)
        assert example.prompt == (
            {"role": "user", "content": "One\n\ntwo?"},
            {"role": "assistant", "content": "Three."},
            {"role": "user", "content": "Four?"},
        )
        assert (example.chosen, example.rejected) == ("Yes.", "No.")

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
        message = refusal({"input": "", "question": "Hello?", "response1": "Yes."})
        assert "no column 'prompt' (columns: input, question, response1)" in message
        assert "data.columns.prompt=question" in message
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
        assert "message 1 is an object of speaker, value" in refusal(
            {"prompt": [{"speaker": "human", "value": "Hello?"}]}
        )

    @pytest.mark.parametrize("role", ["bot", "", None, ["user"]])
    def test_unknown_role(self, role: Any) -> None:
        message = refusal({"prompt": [{"role": role, "content": "Hello?"}]})
        assert "message 1 has the unknown role" in message
        assert "system, user, assistant" in message

    @pytest.mark.parametrize("prompt", ["", " \n\t", "\u00a0", [{"role": "user", "content": " "}]])
    def test_empty_prompt(self, prompt: Any) -> None:
        assert "empty prompt" in refusal({"prompt": prompt})

    @pytest.mark.parametrize("empty", ["", " \n\t", "\u00a0", [{"role": "assistant", "content": " "}]])
    @pytest.mark.parametrize("side", ["chosen", "rejected"])
    def test_an_empty_completion_of_a_pair(self, side: str, empty: Any) -> None:
        row = {"prompt": "Hello?", "chosen": "Yes.", "rejected": "No."} | {side: empty}
        assert f"empty completion in '{side}'" in refusal(row)

    def test_an_empty_completion_in_transcripts(self) -> None:
        opening = "\n\nHuman: Hello?\n\nAssistant:"
        assert "empty completion in 'rejected'" in refusal({"chosen": opening + " Yes.", "rejected": opening})

    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "Hello?", "chosen": "Yes.", "rejected": " Yes.\n"},
            {"prompt": "Hello?", "chosen": "Yes.", "rejected": [ANSWER]},
            {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
            {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: b "},
        ],
    )
    def test_two_equal_completions(self, row: dict[str, Any]) -> None:
        assert "two equal completions" in refusal(row)

    def test_empty_prompt_in_transcripts(self) -> None:
        row = {"chosen": "\n\nHuman: \n\nAssistant: a", "rejected": "\n\nHuman: \n\nAssistant: b"}
        assert "empty prompt" in refusal(row)

    def test_empty_list(self) -> None:
        assert "column 'prompt' is an empty list" in refusal({"prompt": []})

    @pytest.mark.parametrize("last", [ANSWER, SYSTEM])
    def test_a_prompt_must_end_with_the_user(self, last: dict[str, str]) -> None:
        assert f"ends with the {last['role']}" in refusal({"prompt": [USER, last]})

    @pytest.mark.parametrize("chosen", [[USER], [OTHER, ANSWER], [SYSTEM, ANSWER], [ANSWER, USER]])
    def test_a_completion_must_be_an_answer_to_the_prompt(self, chosen: Any) -> None:
        assert "column 'chosen'" in refusal({"prompt": "Hello?", "chosen": chosen, "rejected": "No."})

    def test_pairs_without_a_common_prompt(self) -> None:
        elsewhere = {"role": "user", "content": "Goodbye?"}
        assert "do not open" in refusal({"chosen": [USER, ANSWER], "rejected": [elsewhere, ANSWER]})
        assert "do not open" in refusal({"chosen": [USER], "rejected": [USER]})
        assert "do not open" in refusal({"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: c\n\nAssistant: b"})
        assert "no transcript" in refusal({"chosen": "Yes.", "rejected": "No."})
        headed = "Note\n\nHuman: a\n\nAssistant: b"
        assert "no transcript" in refusal({"chosen": headed, "rejected": headed})
        assert "one form for both" in refusal({"chosen": [USER, ANSWER], "rejected": "No."})

    def test_half_a_surrogate_pair(self) -> None:
        assert "surrogate" in refusal(json.loads('{"prompt": "\\ud83d"}'))
        assert parse_row(json.loads('{"prompt": "\\ud83d\\ude00"}'), "p:1", COLUMNS).prompt == "\U0001f600"


class TestInput:
    columns = ColumnsConfig(prompt="instruction", input="input")

    def test_it_continues_after_a_blank_line(self) -> None:
        example = parse_row({"instruction": "Sum up. ", "input": " A text."}, "p:1", self.columns)
        assert example.prompt == "Sum up. \n\n A text."

    @pytest.mark.parametrize("blank", ["", " \n", None])
    def test_blank_adds_nothing(self, blank: Any) -> None:
        assert parse_row({"instruction": "Sum up.", "input": blank}, "p:1", self.columns).prompt == "Sum up."
        row = {"instruction": [USER], "input": blank}
        assert parse_row(row, "p:1", self.columns).prompt == (USER,)

    def test_refusals(self) -> None:
        assert "no column 'input'" in refusal({"instruction": "Sum up."}, self.columns)
        assert "data.columns.input=..." in refusal({"instruction": "Sum up."}, self.columns)
        assert "column 'input' is a number" in refusal({"instruction": "Sum up.", "input": 3}, self.columns)
        assert "column 'input' holds half" in refusal({"instruction": "Sum up.", "input": "\ud83d"}, self.columns)
        assert "after a conversation" in refusal({"instruction": [USER], "input": "A text."}, self.columns)
        assert "empty prompt" in refusal({"instruction": " ", "input": "A text."}, self.columns)

    def test_a_prompt_that_continues_cannot_hide_in_a_pair(self) -> None:
        row = {"chosen": [USER, ANSWER], "rejected": [USER, OTHER], "input": "A text."}
        assert "no column 'prompt'" in refusal(row, ColumnsConfig(input="input"))

    def test_completions_may_repeat_the_whole_prompt(self) -> None:
        whole = {"role": "user", "content": "Sum up.\n\nA text."}
        row = {"instruction": "Sum up.", "input": "A text.", "chosen": [whole, ANSWER], "rejected": "No."}
        assert parse_row(row, "p:1", self.columns).chosen == "Yes."


class TestDemonstrations:
    @pytest.mark.parametrize("prompt", ["Hello?", [USER]])
    @pytest.mark.parametrize("completion", ["Yes.", [ANSWER], [USER, ANSWER]])
    def test_prompt_and_completion(self, prompt: Any, completion: Any) -> None:
        example = parse_row({"prompt": prompt, "completion": completion}, "p:1", COLUMNS)
        assert (example.text, example.chosen, example.rejected) == ("Hello?", "Yes.", None)

    def test_messages(self) -> None:
        row = {"messages": [SYSTEM, USER, ANSWER, USER, OTHER]}
        example = parse_row(row, "p:1", COLUMNS)
        assert (example.prompt, example.chosen, example.rejected) == ((SYSTEM, USER, ANSWER, USER), "No.", None)

    def test_columns_by_name(self) -> None:
        row = {"q": "Hello?", "a": "Yes.", "completion": "", "talk": [USER, OTHER]}
        columns = ColumnsConfig(prompt="q", completion="a")
        assert parse_row(row, "p:1", columns).chosen == "Yes."
        assert parse_row(row, "p:1", ColumnsConfig(completion="none", messages="talk")).chosen == "No."

    def test_pairs_come_before_completions_before_messages_before_prompts(self) -> None:
        row: dict[str, Any] = {"prompt": "Hello?", "chosen": "A", "rejected": "B", "completion": "C"}
        row["messages"] = [USER, {"role": "assistant", "content": "D"}]
        kinds = []
        for column in ("rejected", "completion", "messages", "prompt"):
            example = parse_row(row, "p:1", COLUMNS)
            kinds.append((example.chosen, example.rejected))
            del row[column]
            row.pop("chosen", None)
        assert kinds == [("A", "B"), ("C", None), ("D", None), (None, None)]

    def test_messages_do_not_replace_a_named_prompt(self) -> None:
        row = {"question": "Why?", "messages": [USER, ANSWER]}
        assert parse_row(row, "p:1", ColumnsConfig(prompt="question")).prompt == "Why?"
        assert parse_row({"messages": [USER]}, "p:1", ColumnsConfig(prompt="messages")).prompt == (USER,)
        assert parse_row({"completion": "Why?"}, "p:1", ColumnsConfig(prompt="completion")).chosen is None
        both = ColumnsConfig(prompt="question", messages="talk")
        assert parse_row({"question": "Why?", "talk": [USER, ANSWER]}, "p:1", both).prompt == (USER,)

    @pytest.mark.parametrize("messages", ["Hello?", [USER], [ANSWER], [USER, ANSWER, USER], [USER, SYSTEM]])
    def test_messages_must_end_with_the_assistant(self, messages: Any) -> None:
        message = refusal({"messages": messages})
        assert "column 'messages' must be a conversation that ends with the assistant" in message
        assert "data.columns.prompt=messages" in message

    def test_other_refusals(self) -> None:
        empty = {"role": "assistant", "content": " "}
        assert "empty completion in 'completion'" in refusal({"prompt": "a", "completion": "\n"})
        assert "empty completion in 'messages'" in refusal({"messages": [USER, empty]})
        assert "prompt that ends with the assistant" in refusal({"messages": [USER, ANSWER, ANSWER]})
        assert "empty prompt" in refusal({"messages": [{"role": "user", "content": ""}, ANSWER]})
        assert "no column 'prompt'" in refusal({"completion": "Yes."})
        assert "column 'completion' must be text or end in one assistant" in refusal(
            {"prompt": "a", "completion": [USER]}
        )


@pytest.mark.skipif("ALIGNRUN_HUMAN_DATA" not in os.environ, reason="needs ALIGNRUN_HUMAN_DATA")
class TestHumanData:
    @property
    def folder(self) -> Path:
        return Path(os.environ["ALIGNRUN_HUMAN_DATA"])

    def test_hh_rlhf(self) -> None:
        rows = list(read_rows(self.folder / "hh_rlhf_harmless_base_test.jsonl.gz"))
        assert len(rows) == 2312
        silent = 0
        for origin, row in rows:
            try:
                example = parse_row(row, origin, COLUMNS)
            except InputError as error:
                silent += "empty completion" in str(error)
                continue
            roles = [turn["role"] for turn in example.prompt]  # type: ignore[index]
            assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
            assert roles[-1] == "user"
            for side, text in (("chosen", example.chosen), ("rejected", example.rejected)):
                assert text is not None
                assert row[side].endswith(text) or "\n\nAssistant:" in row[side][-len(text) - 30 :]
                assert example.prompt[-1]["content"] in row[side]  # type: ignore[index]
        assert silent == 4

    def test_pandalm(self) -> None:
        columns = ColumnsConfig(
            prompt="instruction",
            input="input",
            chosen="response1",
            rejected="response2",
            votes=["annotator1", "annotator2", "annotator3"],
        )
        reasons = Counter[str]()
        rows = list(read_rows(self.folder / "pandalm_human_testset.json"))
        for origin, row in rows:
            try:
                example = parse_row(row, origin, columns)
            except InputError as error:
                reasons[next(known for known in ("completion", "prompt", "boolean") if known in str(error))] += 1
                continue
            ones = sum(row[column] == 1 for column in columns.votes)
            twos = sum(row[column] == 2 for column in columns.votes)
            assert example.chosen == row["response1" if ones >= twos else "response2"]
            assert example.label == pytest.approx(0.5 + abs(ones - twos) / 6)
        assert (len(rows), reasons) == (999, {"completion": 54, "prompt": 1, "boolean": 6})
