import itertools
import math
from typing import Any

import pytest

from alignrun.config import ColumnsConfig
from alignrun.data.records import parse_row
from alignrun.errors import InputError
from alignrun.types import Example

PAIR = {"prompt": "Hello?", "chosen": "Yes.", "rejected": "No."}
LABEL = ColumnsConfig(label="p")
VOTES = ColumnsConfig(votes=["ann", "bob", "eve"])
SPELLING = {1: 1.0, 2: 0.0, 0: 0.5}


def labelled(value: Any) -> Example:
    return parse_row(PAIR | {"p": value}, "p.jsonl:7", LABEL)


def voted(*votes: Any, columns: ColumnsConfig = VOTES) -> Example:
    return parse_row(PAIR | dict(zip(columns.votes, votes, strict=True)), "p.jsonl:7", columns)


def refusal(row: dict[str, Any], columns: ColumnsConfig) -> str:
    with pytest.raises(InputError) as caught:
        parse_row(row, "p.jsonl:7", columns)
    message = str(caught.value)
    assert "\n" not in message
    assert "p.jsonl:7" in message
    return message


def test_a_pair_without_label_or_votes_is_certain() -> None:
    example = parse_row(PAIR, "p:1", ColumnsConfig())
    assert (example.chosen, example.label, example.votes) == ("Yes.", 1.0, ())


@pytest.mark.parametrize(
    ("value", "chosen", "label"),
    [
        (1, "Yes.", 1.0),
        (0.75, "Yes.", 0.75),
        (0.5, "Yes.", 0.5),
        (0.25, "No.", 0.75),
        (0, "No.", 1.0),
        ("0.25", "No.", 0.75),
    ],
)
def test_a_label_turns_the_pair_towards_what_is_preferred(value: Any, chosen: str, label: float) -> None:
    example = labelled(value)
    assert (example.chosen, example.label, example.votes) == (chosen, label, ())
    assert {example.chosen, example.rejected} == {"Yes.", "No."}
    assert type(example.label) is float


@pytest.mark.parametrize("votes", list(itertools.product([0, 1, 2], repeat=3)))
def test_votes_are_averaged_and_mirrored_with_the_pair(votes: tuple[int, ...]) -> None:
    example = voted(*votes)
    given = [SPELLING[vote] for vote in votes]
    mean = sum(given) / 3
    assert example.label == pytest.approx(max(mean, 1 - mean))
    swapped = mean < 0.5
    assert (example.chosen, example.rejected) == (("No.", "Yes.") if swapped else ("Yes.", "No."))
    assert example.votes == tuple(1 - vote if swapped else vote for vote in given)
    # Swapping the columns instead of the votes says the same, to the last bit.
    mirrored = voted(*((0, 2, 1)[vote] for vote in votes))
    assert mirrored.label == example.label
    assert mean == 0.5 or mirrored.chosen == example.rejected


def test_votes_are_compared_as_text() -> None:
    assert voted("1", 1, "2").votes == (1.0, 1.0, 0.0)
    names = ColumnsConfig(votes=["ann"], vote_chosen="A", vote_rejected="True", vote_tie="same")
    assert voted("A", columns=names).votes == (1.0,)
    assert voted("same", columns=names).label == 0.5
    assert voted(True, columns=names).chosen == "No."


def test_labels_apply_where_the_prompt_hides_in_the_pair() -> None:
    opening = "\n\nHuman: Hello?\n\nAssistant:"
    row = {"chosen": opening + " Yes.", "rejected": opening + " No.", "p": 0.2}
    example = parse_row(row, "p:1", LABEL)
    assert (example.text, example.chosen, example.label) == ("Hello?", "No.", 0.8)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (1.5, "is 1.5"),
        (-0.1, "is -0.1"),
        (2, "is a number"),
        (math.nan, "is nan"),
        (math.inf, "is inf"),
        (True, "is a boolean"),
        (False, "is a boolean"),
        (None, "is null"),
        ("likely", "is text"),
    ],
)
def test_a_label_is_a_number_from_zero_to_one(value: Any, found: str) -> None:
    assert f"column 'p' {found}; a label is a number in [0, 1]" in refusal(PAIR | {"p": value}, LABEL)


@pytest.mark.parametrize("vote", [3, True, None, 1.0, "", "first\nplace", ["1"]])
def test_an_unknown_vote(vote: Any) -> None:
    message = refusal(PAIR | {"ann": 1, "bob": vote, "eve": 1}, VOTES)
    for part in ("column 'bob' holds the unknown vote", "(known: 1, 2, 0)", "data.columns.vote_chosen"):
        assert part in message


def test_missing_columns() -> None:
    assert "no column 'p'" in refusal(PAIR, LABEL)
    assert "data.columns.label=" in refusal(PAIR, LABEL)
    assert "no column 'bob'" in refusal(PAIR | {"ann": 1}, VOTES)
    assert "data.columns.votes=" in refusal(PAIR | {"ann": 1}, VOTES)
    # With a label or votes a row is a pair, or nothing.
    assert "data.columns.chosen=" in refusal({"prompt": "Hello?", "p": 1}, LABEL)
