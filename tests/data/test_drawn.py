"""Many rows are encoded when they are drawn, and make the same batches."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import encoding_of

from alignrun import cli
from alignrun.config import BadRows, TooLong
from alignrun.data import drawn
from alignrun.data.demonstrations import DemonstrationSet
from alignrun.data.pairs import EncodedPair, PairSet, check_labels
from alignrun.data.prompts import PromptSet
from alignrun.data.store import Examples
from alignrun.data.values import BadRowError
from alignrun.errors import InputError, RunError
from alignrun.training.checkpoint import list_checkpoints
from alignrun.types import Example

EXAMPLES = tuple(
    Example(f"{row:03}" + "p" * (row % 4), f"p.jsonl:{row}", "c" * (1 + row % 3), "r" * (1 + row % 5))
    for row in range(300)
)


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "MANY", 100)
    monkeypatch.setattr(drawn, "_LOOKED_AT", 10)


@dataclass
class Encoder:
    """One token a character; refuses some of the rows."""

    bad: set[int] = field(default_factory=set)
    read: list[str] = field(default_factory=list)

    def __call__(self, example: Example) -> EncodedPair:
        self.read.append(example.origin)
        if int(example.text[:3]) in self.bad:
            raise BadRowError(f"data: {example.origin}: the chat template refuses it")
        prompt, first, second = (
            tuple(map(ord, text)) for text in (example.text, str(example.chosen), str(example.rejected))
        )
        return EncodedPair(prompt, first, second)


def build(encode: Encoder, report: Callable[[str], None] | None, **options: Any) -> PairSet:
    encoding = encoding_of(SimpleNamespace(pad_token_id=0), drawn=report, **options)
    return PairSet.build(EXAMPLES, encoding, encode)


def texts(pairs: PairSet, steps: int = 30) -> list[tuple[str, ...]]:
    return [pairs.batch_at(step, 20).prompts.texts for step in range(steps)]


def test_few_of_many_rows_are_encoded_at_the_start_and_the_batches_are_the_same() -> None:
    encode, said = Encoder(), list[str]()
    lazy, whole = build(encode, said.append), build(Encoder(), None)
    assert len(encode.read) == 10
    assert said == ["data: 10 of 300 rows checked; each is encoded on demand"]
    for step in range(30):  # two epochs
        ours, theirs = lazy.batch_at(step, 20), whole.batch_at(step, 20)
        assert torch.equal(ours.prompts.input_ids, theirs.prompts.input_ids)
        assert torch.equal(ours.completions.tokens, theirs.completions.tokens)
        assert ours.prompts.texts == theirs.prompts.texts
    assert len(encode.read) == 10 + 300  # each once


def test_a_late_bad_row_stops_the_run_in_one_line() -> None:
    pairs = build(Encoder({7}), lambda _: None)
    with pytest.raises(RunError, match=r"p.jsonl:7: the chat template refuses it; .*data.bad_rows=skip"):
        texts(pairs, 15)


def test_the_row_after_a_bad_one_takes_its_place_whatever_was_drawn_before() -> None:
    said: list[str] = []
    pairs = build(Encoder({7, 8, 299}), said.append, bad_rows=BadRows.skip)
    seen = [text for batch in texts(pairs, 15) for text in batch]
    names = sorted(int(text[:3]) for text in seen)
    assert names == sorted([*set(range(299)) - {7, 8}, 9, 9, 0])
    assert len(said) == 2
    assert "1 drawn so far cannot be used" in said[1]
    again = build(Encoder({7, 8, 299}), lambda _: None, bad_rows=BadRows.skip)
    assert again.batch_at(14, 20).prompts.texts == tuple(seen[-20:])


def test_a_late_row_that_is_too_long_is_refused_or_left_out() -> None:
    longest = 5  # of a prompt; a fourth of the rows is longer
    with pytest.raises(RunError, match=r"p.jsonl:\d+: the prompt has 6 tokens.*data.too_long=skip"):
        # None of the rows looked at is of that kind.
        texts(build(Encoder(), lambda _: None, max_prompt_tokens=longest, too_long=TooLong.error), 15)
    pairs = build(Encoder(), lambda _: None, max_prompt_tokens=longest, too_long=TooLong.skip)
    assert all(len(text) <= longest for batch in texts(pairs) for text in batch)


def test_a_bad_row_among_those_looked_at_is_refused_at_the_start() -> None:
    with pytest.raises(InputError, match=r"p.jsonl:0: .*data.bad_rows=skip"):
        build(Encoder({0}), lambda _: None)


def test_what_no_row_passes_is_refused_at_the_start() -> None:
    with pytest.raises(InputError, match="none of the 10 pairs fits into the limits"):
        build(Encoder(), lambda _: None, max_prompt_tokens=1, too_long=TooLong.skip)


def test_prompts_and_demonstrations_drawn_late_make_the_same_batches(chat_tokenizer: Any) -> None:
    encodings = [encoding_of(chat_tokenizer, context=200, drawn=report) for report in (lambda _: None, None)]
    late, early = (PromptSet.build(EXAMPLES, encoding) for encoding in encodings)
    assert torch.equal(late.batch_at(3, 16).input_ids, early.batch_at(3, 16).input_ids)
    assert late.batch_at(3, 16).texts == early.batch_at(3, 16).texts
    ours, theirs = (DemonstrationSet.build(EXAMPLES, encoding, pack_tokens=100) for encoding in encodings)
    assert torch.equal(ours.batch_at(2, 16).input_ids, theirs.batch_at(2, 16).input_ids)


def test_the_state_is_saved_before_a_late_bad_row_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn, "_LOOKED_AT", 1)
    path, run = tmp_path / "p.jsonl", tmp_path / "run"
    # Every ninth row is too long, and not the one that is looked at.
    path.write_text("".join(json.dumps({"prompt": f"q{row}" + "x" * 90 * (row % 9 == 5)}) + "\n" for row in range(120)))
    held = tmp_path / "held.jsonl"
    held.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    command = ["experiment=smoke", "data=jsonl", f"data.path={path}", f"data.eval_path={held}", f"run.dir={run}"]
    tiny = ["train.steps=40", "train.checkpoint_every=0", "evaluation.every=0", "data.max_prompt_tokens=80"]
    tiny += ["generation.max_new_tokens=2"]
    assert cli.main([*command, *tiny, "train.batch_size=2", "train.micro_batch_size=null"]) == 1
    said = capsys.readouterr().err.strip()
    assert re.fullmatch(
        r".*p\.jsonl:\d+: the prompt has \d+ tokens, and the limit is 80; set data.too_long=skip.*", said
    )
    ((step, _),) = list_checkpoints(run / "checkpoints")
    assert cli.main(["resume", str(run), "data.too_long=skip", f"train.steps={step + 1}"]) == 0


def test_labels_are_checked_without_encoding_all_rows() -> None:
    encode = Encoder()
    ties = Examples(replace(example, label=0.5) for example in EXAMPLES)
    encoding = encoding_of(SimpleNamespace(pad_token_id=0), drawn=lambda _: None)
    pairs = PairSet.build(ties, encoding, encode)
    with pytest.raises(InputError, match="no preference in 300 pairs, all ties"):
        check_labels(pairs.examples)
    assert len(encode.read) == 10
