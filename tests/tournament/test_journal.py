"""A judge that fails half-way loses nothing, and no answer outlives the tournament or a change of the judge."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from alignrun.errors import RunError
from alignrun.preferences.base import Preference
from alignrun.preferences.function import FunctionConfig
from alignrun.preferences.matrix import MatrixConfig
from alignrun.preferences.panel import Panel, PanelRule
from alignrun.tournament import journal
from alignrun.tournament.journal import Journal, Member, journal_file


class Failing(Preference):
    """It answers the length of what it is asked, and fails after so many questions."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> torch.Tensor:
        if len(self.asked) + len(prompts) > self.limit:
            raise RunError("no connection")
        self.asked += zip(prompts, first, second, strict=True)
        return torch.tensor([1 / (2 + len(a)) for a in first])


QUESTIONS = [(f"p{number // 4}", "a" * number, "b") for number in range(40)]


def ask(asked: Journal) -> torch.Tensor:
    return asked(*(list(side) for side in zip(*QUESTIONS, strict=True)))


def test_what_was_answered_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "CHUNK", 6)  # prompts of four stay together: eight are asked at once
    file = tmp_path / "folder" / "a.jsonl"
    broken, whole = Failing(20), Failing(1000)
    first = Journal(broken, file)
    with pytest.raises(RunError, match="no connection"):
        ask(first)
    assert (first.kept, len(broken.asked)) == (16, 16)
    with file.open("a") as torn:
        torn.write('["half')
    second = Journal(whole, file)
    answers = ask(second)
    assert second.found == 16
    assert broken.asked + whole.asked == QUESTIONS
    assert torch.equal(answers, ask(Journal(Failing(1000), None)))
    ask(second)
    assert broken.asked + whole.asked == QUESTIONS
    second.close()
    assert not file.exists()


def test_the_votes_of_a_panel_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "CHUNK", 6)

    class Level(Failing):
        def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> torch.Tensor:
            return torch.full_like(super().__call__(prompts, first, second), 0.5)

    file = tmp_path / "a.jsonl"
    with pytest.raises(RunError, match="no connection"):
        ask(Journal(Panel({"a": Failing(1000), "b": Level(20)}, PanelRule.mean), file))
    members = {"a": Failing(1000), "b": Level(1000)}
    panel = Journal(Panel(members, PanelRule.mean), file)
    answers = ask(panel)
    assert (panel.found, [len(one.asked) for one in members.values()]) == (16, [24, 24])
    assert panel.members == ("a", "b")
    lengths, level = (ask(Member(panel, place)) for place in range(2))
    assert lengths.tolist() == pytest.approx([1 / (2 + len(a)) for _, a, _ in QUESTIONS])
    assert level.tolist() == [0.5] * 40
    assert answers.tolist() == pytest.approx(((lengths + level) / 2).tolist())
    assert len(members["a"].asked) == 24, "a member's votes are those that were kept"


def test_without_a_file_nothing_is_kept(tmp_path: Path) -> None:
    asked = Journal(Failing(1000), None)
    ask(asked)
    assert asked.kept == 0
    asked.close()
    assert not list(tmp_path.iterdir())


def test_other_texts_and_other_judges_have_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judging_here.py").write_text("def f(*_): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import judging_here  # noqa: F401

    section = FunctionConfig(function="judging_here:f")
    same, again = (journal_file(tmp_path, section, ["x"]) for _ in range(2))
    assert same == again
    assert journal_file(tmp_path, section, ["y"]) != same
    assert journal_file(tmp_path, FunctionConfig(function="judging_here:f", temperature=2.0), ["x"]) != same
    (tmp_path / "judging_here.py").write_text("def f(*_): return 1\n")
    assert journal_file(tmp_path, section, ["x"]) != same
    game = tmp_path / "game.json"
    game.write_text("{}")
    played = MatrixConfig(game=str(game))
    before = journal_file(tmp_path, played, ["x"])
    game.write_text("{ }")
    assert journal_file(tmp_path, played, ["x"]) != before
