"""`alignrun chat`: answers are those of transformers for the same conversation, however many policies answer."""

import io
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console

from alignrun import cli
from alignrun.chat import seats as seating
from alignrun.chat.command import chat
from alignrun.chat.screen import Screen
from alignrun.chat.seats import Seat, seats
from alignrun.chat.unfolding import Unfolding
from alignrun.config import SamplingConfig
from alignrun.launch import compose
from alignrun.models.sources import load_model, load_tokenizer
from alignrun.models.tiny import byte_tokenizer
from alignrun.security.terminal import PlainConsole
from alignrun.security.text import visible
from alignrun.types import Role

GREEDY = ["top_k=1", "max_new_tokens=6"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    for name, rate in (("a", 0.05), ("b", 0.1)):
        arguments = ["experiment=smoke", f"optim.learning_rate={rate}", "evaluation.batch_size=8"]
        assert cli.main([*arguments, f"run.dir={folder / name}"]) == 0
    return folder


def expected(run: Path, messages: Sequence[str], *, reference: bool = False) -> list[str]:
    """The greedy answers of transformers and PEFT, each after the whole conversation so far."""
    config = compose.load(run / "config.yaml").model
    tokenizer = load_tokenizer(config)
    torch.manual_seed(0)
    model = load_model(config, tokenizer, torch.float32)
    if not reference:
        model = PeftModel.from_pretrained(model, str(run / "adapter"))
    turns, answers = [], []
    for message in messages:
        turns.append({"role": "user", "content": message})
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            for _ in range(6):
                token = model(input_ids=ids).logits[0, -1].argmax()
                ids = torch.cat([ids, token[None, None]], 1)
                if int(token) == tokenizer.eos_token_id:
                    break
        whole = tokenizer.decode(ids[0, -6:], skip_special_tokens=True).strip()
        turns.append({"role": "assistant", "content": whole})
        answers.append(whole)
    return answers


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, *arguments: str) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    capsys.readouterr()
    assert cli.main(["chat", *arguments, *GREEDY]) == 0
    return capsys.readouterr().out


def test_answers_are_those_of_transformers_for_the_conversation(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = expected(runs / "a", ["hello", "and now?"])
    (fresh,) = expected(runs / "a", ["and now?"])
    assert fresh != second, "the conversation matters"
    out = said(monkeypatch, capsys, "hello\n\nand now?\n/new\nand now?\n/exit\nnever", str(runs / "a"))
    assert out == "".join(f"{visible(text)}\n\n" for text in (first, second, fresh))


def test_two_runs_and_their_reference_keep_their_own_conversations(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = ["hello", "and now?"]
    answers = [expected(runs / "a", messages), expected(runs / "b", messages)]
    answers.append(expected(runs / "a", messages, reference=True))
    assert len({first for first, _ in answers}) == 3
    out = said(monkeypatch, capsys, "hello\nand now?", str(runs / "a"), str(runs / "b"), "--reference")
    names = ("a", "b", "reference")
    turns = [
        "".join(f"{name}: {visible(own[turn])}\n" for name, own in zip(names, answers, strict=True)) for turn in (0, 1)
    ]
    assert out == "\n".join([*turns, ""])


def test_one_base_carries_two_runs_and_a_model(runs: Path) -> None:
    config = SamplingConfig()
    one, other, reference = seats([str(runs / "a"), str(runs / "b")], True, config)
    assert one.policy is other.policy is reference.policy
    assert (one.role, other.role, reference.role) == (Role.anchor, Role.policy, Role.reference)
    one, other = seats([str(runs / "a"), "tiny"], False, config)
    assert one.policy is other.policy
    assert (one.role, other.role) == (Role.anchor, Role.reference)
    assert (one.max_new_tokens, other.max_new_tokens) == (8, 512)
    assert (one.temperature, other.temperature) == (0.7, 1.0)
    first, second = seats([str(runs / "a" / "checkpoints" / f"step-{step}") for step in (2, 3)], False, config)
    assert (first.name, second.name, first.player.step) == ("a@2", "a@3", 2)


def test_policies_on_different_bases_answer_the_same(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seating, "share_base", lambda *_: False)
    found = seats([str(runs / "a"), str(runs / "b")], False, SamplingConfig(top_k=1, max_new_tokens=6))
    assert found[0].policy is not found[1].policy
    for seat, name in zip(found, "ab", strict=True):
        text, _ = seat.answer("hello", seat.encode("hello"), lambda _: None)
        assert [text] == expected(runs / name, ["hello"])


def test_text_grows_token_by_token_to_what_is_decoded() -> None:
    tokenizer = byte_tokenizer()
    text = " naïve 🙂 “words”  end "
    ids = tokenizer(text, add_special_tokens=False).input_ids
    unfolding = Unfolding(tokenizer, "<think>")
    grown = [unfolding(token) for token in ids]
    assert all(after.startswith(before) for before, after in pairwise(grown))
    assert len(set(grown)) > 12
    assert "\ufffd" not in "".join(grown)
    assert unfolding.whole == f"<think>{text}".strip()


def test_ctrl_c_ends_an_answer_and_keeps_it(runs: Path) -> None:
    (seat,) = seats([str(runs / "a")], False, SamplingConfig(max_new_tokens=50, seed=4))
    shown: list[str] = []

    def interrupt(text: str) -> None:
        shown.append(text)
        if len(shown) == 8:
            raise KeyboardInterrupt

    text, ended = seat.answer("hello", seat.encode("hello"), interrupt)
    assert text.startswith(shown[-1])
    assert ended
    assert [turn["content"] for turn in seat.turns] == ["hello", text]
    again, _ = seat.answer("more", seat.encode("more"), shown.append)
    assert [turn["content"] for turn in seat.turns] == ["hello", text, "more", again]
    assert again.startswith(shown[-1])


def columns(runs: Path, width: int, message: str) -> str:
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=True, width=width, height=30, color_system=None)
    answering = seats([str(runs / "a"), str(runs / "b")], False, SamplingConfig(top_k=1, max_new_tokens=6))
    screen = Screen(console, answering, talking=True)
    with screen.answers() as place:
        for seat in answering:
            show = place(seat)
            text, ended = seat.answer(message, seat.encode(message), show)
            screen.end(seat, text, show, ended=ended)
    return file.getvalue()


def test_answers_stand_side_by_side_where_there_is_room(runs: Path) -> None:
    for message in ("hello", "who?", "why?", "when?", "where?", "what?"):
        one, other = (visible(expected(runs / name, [message])[0]) for name in "ab")
        if not set(" \t\n") & {*one, *other}:
            break
    wide = columns(runs, 80, message).splitlines()
    assert any(line.split() == ["a", "b"] for line in wide)
    assert any(line.split() == [one, other] for line in wide)
    narrow = columns(runs, 50, message)
    assert f"a: {one}\n" in narrow
    assert f"b: {other}\n" in narrow


def test_what_cannot_be_answered_is_said(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 5000))
    assert cli.main(["chat", str(runs / "a")]) == 2
    assert "a reads 1024 tokens: the conversation has 50" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("/nwe\n"))
    assert cli.main(["chat", str(runs / "a")]) == 0
    assert "/nwe is not a command: /new starts over" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8"))
    assert cli.main(["chat", str(runs / "a")]) == 2
    assert "standard input is not UTF-8" in capsys.readouterr().err
    said(monkeypatch, capsys, "hello", str(runs / "a"))
    assert cli.main(["chat", str(runs / "a"), str(runs / "a")]) == 2
    assert "is named twice" in capsys.readouterr().err


def test_an_answer_that_is_cut_off_is_marked(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    assert cli.main(["chat", str(runs / "a"), *GREEDY]) == 0
    captured = capsys.readouterr()
    assert "alignrun: a was cut off after 6 tokens (max_new_tokens)\n" in captured.err
    assert "cut off" not in captured.out, "standard output holds the answers alone"


def test_a_model_without_a_template_forgets(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bare(config: SamplingConfig) -> Seat:
        (seat,) = seating.seats([str(runs / "a")], False, config)
        seat.policy.tokenizer.chat_template = None
        return seat

    monkeypatch.setattr("alignrun.chat.command.seats", lambda *given: [bare(given[2])])
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\none\n"))
    config = SamplingConfig(top_k=1, max_new_tokens=4)
    assert chat([str(runs / "a")], False, config, Console(width=80)) == 0
    first, second = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert first == second
