"""What is read from an answer: probabilities, words, and nothing where it is no verdict."""

import json
import math

import pytest

from alignrun.preferences.judge.config import AnswersConfig
from alignrun.preferences.judge.verdict import Answer, parse_answer, read


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
    assert read(Answer("2", False, [("1", -math.inf), ("2", 0.0)]), AnswersConfig()) == 0.0


@pytest.mark.parametrize(
    "candidates",
    [
        [("1", 0.5)],
        [("1", 1e9)],
        [("1", math.nan), ("2", -1.0)],
        [("x", math.nan), ("1", -0.01)],
        [("1", -0.1), ("2", -0.1)],
        [("1", -1.0), ("1", -1.0), ("2", -2.0)],
    ],
)
def test_what_is_no_distribution_is_no_verdict(candidates: list[tuple[str, float]]) -> None:
    """Neither the numbers nor the text of a server that gives such numbers can be believed."""
    assert read(Answer("1", False, candidates), AnswersConfig()) is None
    top = [{"token": token, "logprob": logprob} for token, logprob in candidates]
    choice = {"message": {"content": "1"}, "logprobs": {"content": [{"top_logprobs": top}]}}
    received = json.loads(json.dumps({"choices": [choice]}))
    assert read(parse_answer(received), AnswersConfig()) is None


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([("1", 0.001), ("2", -9999.0), ("�", -9999.0), ("�", -9999.0)], 1.0),  # rounding, and what cannot come
        ([("1", math.log(0.6)), ("1", math.log(0.2)), ("2", math.log(0.2))], 0.8),  # two tokens of one text
    ],
)
def test_what_is_odd_but_possible_is_read(candidates: list[tuple[str, float]], expected: float) -> None:
    assert read(Answer("2", False, candidates), AnswersConfig()) == pytest.approx(expected, abs=1e-6)
