"""The user's function is given what its parameters name: texts, conversations and the other columns of the rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignrun import cli
from alignrun.config import ColumnsConfig
from alignrun.data.records import parse_row
from alignrun.errors import InputError, RunError
from alignrun.preferences import examples
from alignrun.preferences.function import FunctionPreference, FunctionReward
from alignrun.types import Prompt

SUMS = [
    {"prompt": "1 + 1?", "answer": "#### 2", "category": "sum"},
    {"prompt": [{"role": "system", "content": "Count."}, {"role": "user", "content": "2 + 2?"}], "answer": "4"},
]


def asked(rows: list[dict[str, Any]] = SUMS) -> list[Prompt]:
    return [parse_row(row, f"rows:{place}", ColumnsConfig(), wanted=None).asked for place, row in enumerate(rows)]


def rewards(function: Callable[..., Any], prompts: list[Any], completions: list[str]) -> list[float]:
    return FunctionReward("mine:f", function, 1.0).rewards(prompts, completions).tolist()


def test_a_verifiable_reward_reads_the_answer() -> None:
    completions = ["That is 1,2 or 2.", "I say 5"]
    assert rewards(examples.last_number, asked(), completions) == [1.0, 0.0]


def test_each_form_of_function_is_given_what_it_names() -> None:
    seen: list[Any] = []

    def whole(prompts: list[str], completions: list[str], rows: list[Any], messages: list[Any]) -> list[float]:
        seen.append((rows, messages))
        assert all(type(prompt) is str for prompt in prompts)
        return [0.0] * len(prompts)

    def spread(completions: list[str], **columns: list[Any]) -> list[float]:
        seen.append(columns)
        return [0.0] * len(completions)

    def optional(a: list[str], b: list[str], answer: list[str], category: str = "none") -> list[float]:
        seen.append((a, b, answer, category))
        return [0.0] * len(a)

    async def later(prompts: list[str], completions: list[str], *, answer: list[str]) -> list[float]:
        return [float(len(text)) for text in answer]

    prompts, texts = asked(), ["x", "y"]
    assert rewards(whole, prompts, texts) == rewards(spread, prompts, texts) == rewards(optional, prompts, texts)
    rows, messages = seen[0]
    assert rows == [{"answer": "#### 2", "category": "sum"}, {"answer": "4"}]
    assert messages[1] == SUMS[1]["prompt"]
    assert messages[0] == [{"role": "user", "content": "1 + 1?"}]
    assert seen[1] == {"prompts": list(prompts), "answer": ["#### 2", "4"], "category": ["sum", None]}
    assert seen[2] == (list(prompts), texts, ["#### 2", "4"], "none")  # one row has no category
    assert rewards(later, prompts, texts) == [6.0, 1.0]


def test_functions_of_two_and_three_texts_work_as_before() -> None:
    assert rewards(lambda a, b: [float(x == y) for x, y in zip(a, b, strict=True)], ["p", "q"], ["p", "r"]) == [1, 0]
    preference = FunctionPreference("mine:f", examples.same_first_letter)
    assert preference(["Ab"], ["a"], ["b"]).tolist() == [1.0]

    def pairwise(prompts: list[str], first: list[str], second: list[str], answer: list[str]) -> list[float]:
        return [float(known.endswith(text)) for known, text in zip(answer, first, strict=True)]

    assert FunctionPreference("mine:f", pairwise)(asked(), ["2", "2"], ["4", "4"]).tolist() == [1.0, 0.0]


def test_values_of_a_model_bring_no_graph() -> None:
    """Members of a panel are asked in threads, where gradients are on."""
    weight = torch.ones(2, requires_grad=True)
    found = FunctionReward("mine:f", lambda _prompts, _completions: weight * 3, 1.0).rewards(["a", "b"], ["x", "y"])
    assert (found.tolist(), found.requires_grad) == ([3.0, 3.0], False)


def test_rows_that_share_a_prompt_and_not_the_answer_are_distinguished() -> None:
    rows = [{"prompt": "Which?", "answer": answer} for answer in ("1", "2")]
    reward = FunctionReward("mine:f", examples.last_number, 1.0)
    assert reward(asked(rows), ["1", "1"], ["2", "2"]).sub(0.5).sign().tolist() == [1, -1]
    assert len({prompt.identity for prompt in asked(rows)}) == 2


def test_a_missing_column_is_one_line() -> None:
    rows = [parse_row(row, f"rows:{place}", ColumnsConfig(), wanted=None) for place, row in enumerate(SUMS)]

    def needs(completions: list[str], category: list[str]) -> list[float]:
        raise AssertionError

    reward = FunctionReward("mine:f", needs, 1.0)
    with pytest.raises(InputError, match=r"mine:f takes 'category', and rows:1 has no such column"):
        reward.check(rows)
    with pytest.raises(RunError, match="takes 'category', and a row has no such column"):
        reward.rewards(asked(), ["a", "b"])


def test_a_run_learns_from_the_answers_in_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n} + {n}?", "answer": str(2 * n)}) + "\n" for n in range(8)))
    given = ["experiment=smoke", "data=jsonl", f"data.path={file}", f"data.eval_path={file}", "train.steps=1"]
    chosen = ["preference=function", "preference.kind=reward"]
    function = "preference.function=alignrun.preferences.examples:last_number"
    assert cli.main([*given, *chosen, function, f"run.dir={tmp_path / 'run'}"]) == 0
    assert "not read" not in capsys.readouterr().out
    file.write_text(file.read_text().replace("answer", "solution"))
    assert cli.main([*given, *chosen, function, f"run.dir={tmp_path / 'other'}"]) == 2
    said = capsys.readouterr().err
    assert "takes 'answer'" in said
    assert "sums.jsonl:1 has no such column" in said
    assert said.count("\n") == 1


def test_prompts_survive_what_texts_survive() -> None:
    import pickle

    (prompt, _) = asked()
    copy = pickle.loads(pickle.dumps(prompt))
    assert (copy, copy.turns, copy.columns) == (prompt, prompt.turns, prompt.columns)
    assert json.dumps([prompt]) == '["1 + 1?"]'
    assert torch.equal(FunctionReward("f", examples.letters, 1.0).rewards([prompt], ["ab"]), torch.tensor([1.0]))
