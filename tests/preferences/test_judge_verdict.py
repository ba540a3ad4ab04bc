"""What is read from an answer: probabilities, words, and nothing where it is no verdict."""

import math

import pytest

from alignrun.preferences.judge_config import AnswersConfig
from alignrun.preferences.judge_verdict import Answer, read


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1.0),
        (" 2\n", 0.0),
        ("0", 0.5),
        ("**1**.", 1.0),
        ("[[2]]", 0.0),
        ("Answer: 2", 0.0),
        ("The better answer is 1.", 1.0),
        ("1, because it is shorter", 1.0),
        ("<think>1 or 2? 2.</think>\n1", 1.0),
        ("2 seems right</think>1", 1.0),
        ("<think>Answer 1", None),
        ("", None),
        ("10", None),
        ("1.5", None),
        ("0.8", None),
        ("2/10", None),
        ("12", None),
        ("1 and 2 are alike", None),
        ("Answer 1 is wrong", None),
        ("neither", None),
        ("一", None),
    ],
)
def test_verdicts_in_words(text: str, expected: float | None) -> None:
    assert read(Answer(text, False, []), AnswersConfig()) == expected


def test_verdicts_of_ones_own_and_answers_that_were_cut() -> None:
    words = AnswersConfig("[[A]]", "[[B]]", None)
    assert read(Answer("A is fine, and 0 faults, but B wins: [[B]]", False, []), words) == 0.0
    assert read(Answer("A", False, []), words) is None
    assert read(Answer("0", False, []), words) is None
    assert read(Answer("I think that answer 1", False, []), AnswersConfig()) == 1.0
    assert read(Answer("I think that answer 1", True, []), AnswersConfig()) is None
    assert read(Answer("1", True, []), AnswersConfig()) == 1.0


def test_probabilities_of_the_first_token() -> None:
    def of(**shares: float) -> float | None:
        return read(Answer("2", False, [(token, math.log(share)) for token, share in shares.items()]), AnswersConfig())

    assert of(**{"1": 0.5, "2": 0.25, " 1": 0.25}) == pytest.approx(0.75)
    assert of(**{"1": 0.3, "2": 0.1, "0": 0.6}) == pytest.approx(0.6)  # a tie's share is split
    assert of(**{"1": 0.3, "x": 0.7}) == 0.0  # most of the mass elsewhere: the text
    assert read(Answer("2", False, [("1", math.nan)]), AnswersConfig()) == 0.0
    assert read(Answer("2", False, [("1", 1e9)]), AnswersConfig()) == 0.0
    assert read(Answer("2", False, [("1", -math.inf), ("2", 0.0)]), AnswersConfig()) == 0.0
