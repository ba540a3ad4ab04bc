import json
from pathlib import Path

import pytest

from alignrun.config import DataConfig
from alignrun.data.loading import load_examples
from alignrun.errors import InputError
from alignrun.games import CYC
from alignrun.games.files import PROMPT
from alignrun.launch.compose import compose


def config(game: str | None, eval_size: int | None = 2000) -> DataConfig:
    return DataConfig(name="game_pairs", source="game", game=game, eval_size=eval_size)


def test_every_pair_once_with_the_probability_of_the_game() -> None:
    loaded = load_examples(config("cyc"))
    assert list(loaded.heldout) == list(loaded.train)
    assert loaded.skipped == 0
    assert [(example.chosen, example.rejected, example.label) for example in loaded.train] == [
        ("a", "b", 0.9),
        ("c", "a", 0.7),
        ("b", "c", 0.8),
    ]
    for example in loaded.train:
        winner, loser = (CYC.actions.index(str(action)) for action in (example.chosen, example.rejected))
        assert example.label == CYC.preferences[winner, loser].item()
        assert (example.prompt, example.votes) == (PROMPT, ())
        assert "cyc" in example.origin


def test_a_game_of_ones_own_with_a_tie(tmp_path: Path) -> None:
    path = tmp_path / "game.json"
    path.write_text(
        json.dumps({"preferences": [[0.5, 0.5], [0.5, 0.5]], "reference": [0.5, 0.5], "actions": ["up", "down"]})
    )
    (example,) = load_examples(config(str(path))).train
    assert (example.chosen, example.rejected, example.label) == ("up", "down", 0.5)


def test_eval_size() -> None:
    loaded = load_examples(config("cyc", eval_size=1))
    assert (len(loaded.train), len(loaded.heldout)) == (3, 1)


def test_a_missing_game_says_how_to_name_one() -> None:
    with pytest.raises(InputError, match=r"data\.game is missing: choose preference=matrix") as caught:
        load_examples(config(None))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="chess"):
        load_examples(config("chess"))


def test_the_game_follows_the_preference() -> None:
    assert compose(["data=game_pairs", "preference=matrix", "preference.game=rps"]).data == config("rps")
    assert compose(["data=game_pairs", "preference=sentiment"]).data.game is None


def test_the_presets_of_human_pairs() -> None:
    pandalm = compose(["data=pandalm", "data.path=pairs.json"]).data
    assert (pandalm.columns.chosen, pandalm.columns.votes[-1]) == ("response1", "annotator3")
    hh_rlhf = compose(["data=hh_rlhf", "data.path=pairs.jsonl.gz"]).data
    assert hh_rlhf.bad_rows is pandalm.bad_rows is type(pandalm.bad_rows).skip
