"""`alignrun data`: its counts, reasons, histogram and marks."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignrun import cli
from alignrun.data.dataset import Read
from alignrun.data.skips import Skips
from alignrun.launch.compose import compose
from alignrun.launch.data_view import _text, show_data
from alignrun.launch.histogram import BINS, bin_size, described, histogram
from alignrun.models.tiny import byte_tokenizer
from alignrun.security.terminal import PlainConsole

PRINTED = st.characters(min_codepoint=32, max_codepoint=126)


def rows(path: Path, *more: object) -> Path:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    good = [{"messages": [*turns * (1 + n % 3)]} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*good, *more]))
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["data", "experiment=smoke", *arguments]) == 0
    return capsys.readouterr().out


def test_what_would_be_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignrun.models.sources.load_model", None)  # no weights
    hostile = [{"role": "user", "content": "\x1b[2Jx"}] * 2
    path = rows(tmp_path / "r.jsonl", *[{"messages": []}] * 4, {"messages": hostile})
    given = ["algo=sft", "data=jsonl", f"data.path={path}", f"data.eval_path={path}", "data.eval_size=5"]
    out = shown(capsys, *given)
    assert "30 rows to train on, 5 held out" in out
    assert "3 steps of 4 rows: 0.4 epochs" in out
    assert "20 of the first 30 rows have earlier turns" in out
    assert "8 rows left out: r.jsonl:31, column 'messages' is an empty list" in out  # on both sides
    assert "2 rows left out: r.jsonl:35, column 'messages' must be a conversation" in out
    assert "a run stops at such rows: data.bad_rows=skip" in out
    assert out.count("⟦A<|im_end|>⟧") == 3
    assert "completion: 2 to 2 tokens" in out
    every = shown(capsys, *given, "data.train_on=all", "--examples", "9")
    assert "earlier turns" not in every
    assert {text.count("⟦A<|im_end|>⟧") for text in every.split(", demonstration")[1:]} == {1, 2, 3}
    assert "\x1b" not in out + every


def test_a_column_that_only_the_judge_reads_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it judges no pair to train on, and the policy alone."""
    Path("answers.py").write_text("def right(completions, answer):\n    return [0.0] * len(completions)\n")
    lines = [{"prompt": f"Q{n}", "chosen": "a", "rejected": "b", "answer": "a", "other": 1} for n in range(30)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judge = ["preference=function", "preference.function=answers:right", "preference.kind=reward"]
    out = shown(capsys, "algo=dpo", "data=jsonl", f"data.path={tmp_path / 'r.jsonl'}", *judge)
    assert "columns that are not read: other\n" in out


def test_each_kind_of_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = shown(capsys, "algo=dpo", "train.epochs=2", "train.batch_size=8", "--examples=1")
    assert "100 rows to train on, 8 held out" in pairs
    assert "25 steps of 8 rows: 2 epochs" in pairs
    assert (pairs.count("⟦"), pairs.count("⟧")) == (3, 3)  # two texts, and the legend
    prompts = shown(capsys, "--examples=0")
    assert "256 rows to train on" in prompts
    assert "first prompts" not in prompts
    model = shown(capsys, "algo=reward_model", "data.max_completion_tokens=60", "--examples=1")
    assert "the whole text is scored" in model
    assert "data.too_long=skip leaves them out" in model
    assert "⟦" not in model


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--examples=-1"], "must not be negative"),
        (["--examples=x"], "invalid int value"),
        (["--exampels=3"], "--exampels=3 is not an option: did you mean --examples?"),
        (["data=jsonl", "data.path=none.jsonl"], "there is no file"),
        (["algo=dpo", "data.train_on=all"], "data.train_on=all is for algo=sft"),
        (["algo=dpo", "data=inline", "data.prompts=[a]"], "holds no pair"),
    ],
)
def test_one_line_for_what_cannot_be_shown(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "experiment=smoke", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert part in error
    assert "\n" not in error


def test_colours_stand_where_marks_would() -> None:
    console = PlainConsole(force_terminal=True, color_system="standard", width=200)
    with console.capture() as captured:
        show_data(compose(["experiment=smoke", "algo=sft"]), 2, console)
    coloured = captured.get()
    assert "learned tokens are green" in coloured
    assert "⟦" not in coloured
    assert re.findall(r"\x1b\[1;32m(.*?)\x1b\[0m", coloured, re.DOTALL)[-1].endswith("<|im_end|>")


def test_control_characters_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"prompt": "a\x1b[2Jb", "completion": "c\x07\u202ed"}) + "\n")
    out = shown(capsys, "algo=sft", "data=jsonl", f"data.path={path}", f"data.eval_path={path}")
    assert "a␛[2Jb" in out
    assert "⟦c␇[U+202E]d<|im_end|>⟧" in out


@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1), st.lists(st.integers(0, 60), max_size=4)
)
def test_marks_stand_around_what_is_learned(text: str, cuts: list[int]) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    edges = sorted({min(cut, len(ids)) for cut in cuts})
    spans = tuple(zip(edges[::2], edges[1::2], strict=False))
    marked = "".join(
        "⟦" * any(start == place for start, _ in spans) + tokenizer.decode([token])
        + "⟧" * any(end == place + 1 for _, end in spans)
        for place, token in enumerate(ids)
    )  # fmt: skip
    assert _text(Read("x", tuple(ids), spans), tokenizer, colours=False).plain == marked


def test_long_texts_are_cut_and_said_to_be() -> None:
    tokenizer = byte_tokenizer()
    ids = tuple(tokenizer("a" * 500 + "b" * 1000, add_special_tokens=False)["input_ids"])
    plain = _text(Read("x", ids, ((1499, 1500),)), tokenizer, colours=False).plain
    assert plain == "a" * 400 + " […699 characters…] " + "b" * 400 + "⟦b⟧"


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200))
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    lines = histogram(values)
    assert len(lines) <= BINS
    total = 0
    for line in lines:
        (name, *bar) = line.split()
        start, _, end = name.partition("-")
        held = sum(int(start) <= value <= int(end or start) for value in values)
        assert held == (int(bar[1].replace(",", "")) if bar else 0)
        total += held
    assert total == len(values)
    assert str(bin_size(max(values) - min(values) + 1)).strip("0") in ("1", "2", "5")


def test_the_description_by_hand() -> None:
    assert described([*range(1, 20), 1000]) == "1 to 1,000 tokens, median 10, 95% at most 19"
    assert described([7]) == "7 to 7 tokens, median 7, 95% at most 7"


def test_reasons_that_differ_in_a_row_or_number_are_one() -> None:
    skips = Skips()
    for row in (1, 2, 30):
        skips.add(f"data: r:{row} has {row} values", f"r:{row}")
    skips.add("data: r:9 is empty", "r:9")
    assert (len(skips), skips.by_reason()) == (4, {"r:1 has 1 values": 3, "r:9 is empty": 1})
