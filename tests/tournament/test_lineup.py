"""Whose reference is whose, whatever the order in which the policies are named; nothing is loaded here."""

from dataclasses import replace
from pathlib import Path

import pytest

from alignrun.config import ReferenceConfig, ReferenceKind, TournamentConfig, TrackerConfig
from alignrun.errors import InputError
from alignrun.launch.compose import compose
from alignrun.tournament import choosing, lineup
from alignrun.tournament.lineup import Field, Lineup
from alignrun.tournament.players import Player

SMOKE = compose(["experiment=smoke"])


def run(name: str, adapter: str | None = None, seed: int = 0) -> Player:
    """A run whose reference is the base, or an adapter."""
    reference = ReferenceConfig() if adapter is None else ReferenceConfig(ReferenceKind.adapter, adapter)
    config = replace(SMOKE, reference=reference, seed=seed)
    return Player(name, f"runs/{name}", config, Path(f"{name}/checkpoints/step-1"), config)


MODEL = Player("model", "model", SMOKE, None)
"""The base itself."""
OTHER = Player("other", "other", replace(SMOKE, model=replace(SMOKE.model, name="other")), None)


def lined_up(monkeypatch: pytest.MonkeyPatch, *players: Player, reference: str | None = None) -> Lineup:
    known = {player.name: player for player in (*players, MODEL, OTHER)}
    for module in (lineup, choosing):
        monkeypatch.setattr(
            module, "find_player", lambda source, name=None, _=(): replace(known[source], name=name or source)
        )
    config = TournamentConfig(
        runs=[player.name for player in players], reference_policy=reference, tracker=TrackerConfig()
    )
    return lineup.line_up(config)


def by_name(field: Field) -> dict[str, str | None]:
    names = [player.name for player in field.players]
    return {name: None if r is None else names[r] for name, r in zip(names, field.references, strict=True)}


@pytest.mark.parametrize("backwards", [False, True])
def test_runs_of_one_reference_share_it(monkeypatch: pytest.MonkeyPatch, backwards: bool) -> None:
    players = [run("a"), run("b"), OTHER]
    field = lined_up(monkeypatch, *(reversed(players) if backwards else players)).settle({})
    assert by_name(field) == dict.fromkeys(["a", "b", "other", "reference"], "reference")
    assert (field.reference, field.players[-1].source) == ("reference", "the reference of runs/a, runs/b")
    listed = lined_up(monkeypatch, run("a"), MODEL)
    assert by_name(listed.settle({})) == dict.fromkeys(["a", "model"], "model")
    assert listed.order() == [0, 1]
    assert lined_up(monkeypatch, MODEL, run("a")).order() == [1, 0], "a reference is loaded last"


@pytest.mark.parametrize("backwards", [False, True])
def test_runs_of_different_references_keep_them(monkeypatch: pytest.MonkeyPatch, backwards: bool) -> None:
    players = [run("a"), run("b", "sft"), run("c", "sft"), OTHER]
    field = lined_up(monkeypatch, *(reversed(players) if backwards else players)).settle({})
    first, second = "reference of a", "reference of b, c"
    assert by_name(field) == {
        "a": first, "b": second, "c": second, "other": None, first: first, second: second,
    }  # fmt: skip
    assert (field.common, field.reference) == (None, None)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_run_that_is_the_reference_of_another_takes_part(monkeypatch: pytest.MonkeyPatch, backwards: bool) -> None:
    """Its weights tell: the reference of dpo, loaded after both, is what sft has learned."""
    players = [run("sft"), run("dpo", "runs/sft")]
    found = lined_up(monkeypatch, *(reversed(players) if backwards else players))
    names = [player.name for player in found.players]
    field = found.settle({names.index("reference of dpo"): names.index("sft")})
    assert by_name(field) == {"sft": "reference of sft", "dpo": "sft", "reference of sft": "reference of sft"}


def test_references_that_turn_out_to_be_one_are_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lined_up(monkeypatch, run("a"), run("b", seed=1), OTHER)
    assert len(found.players) == 5, "random bases have their seed"
    assert by_name(found.settle({4: 3})) == dict.fromkeys(["a", "b", "other", "reference"], "reference")


def test_a_named_reference_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for reference, listed in (("b", 3), ("model", 4)):
        field = lined_up(monkeypatch, run("a"), run("b", "sft"), OTHER, reference=reference).settle({})
        assert len(field.players) == listed
        assert set(by_name(field).values()) == {"b" if reference == "b" else "reference"}


def test_models_alone_have_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_name(lined_up(monkeypatch, MODEL, OTHER).settle({})) == {"model": None, "other": None}
    with pytest.raises(InputError, match="one model and no run"):
        lined_up(monkeypatch, MODEL)


def test_a_player_that_chooses_is_compared_with_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"model": MODEL, "a": run("a")}
    monkeypatch.setattr(choosing, "find_player", lambda source, name=None, _=(): known[source])
    for runs, names in (
        (["borda:model"], ["borda:model", "reference"]),
        (["mirror:model", "model"], ["mirror:model", "model"]),
        (["mirror:a", "a", "borda:a"], ["mirror:a", "a", "borda:a", "reference"]),
    ):
        field = lineup.line_up(TournamentConfig(runs=runs, tracker=TrackerConfig())).settle({})
        assert [player.name for player in field.players] == names
        assert set(by_name(field).values()) == {names[1] if "model" in names else "reference"}
    with pytest.raises(InputError, match="chooses among samples, and its probabilities are not known"):
        lineup.line_up(
            TournamentConfig(runs=["mirror:model", "model"], reference_policy="mirror:model", tracker=TrackerConfig())
        )


def test_a_run_that_has_not_moved_is_no_tournament(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="a is its own reference, weight for weight"):
        lined_up(monkeypatch, run("a")).settle({1: 0})
    field = lined_up(monkeypatch, run("a"), run("b")).settle({2: 0})
    assert (by_name(field), field.reference) == ({"a": "a", "b": "a"}, "a")
