"""A judge's answer, and the verdict in it."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from alignrun.preferences.judge.config import AnswersConfig


@dataclass(frozen=True, slots=True)
class Answer:
    """The parts of an answer that a verdict is read from."""

    text: str
    cut: bool
    """Whether it was cut off at `max_tokens`."""
    first_token: list[tuple[str, float]]
    """The candidates for the first token and their log-probabilities; empty if the server gives none."""


def parse_answer(body: Any) -> Answer:
    """Text and first token of a chat completion's first choice; empty if the body is nonsense."""
    choice = dig(body, "choices", 0)
    text = dig(choice, "message", "content")
    top = dig(choice, "logprobs", "content", 0, "top_logprobs")
    candidates = top if isinstance(top, list) else []
    pairs = [(dig(candidate, "token"), dig(candidate, "logprob")) for candidate in candidates]
    return Answer(
        text if isinstance(text, str) else "",
        dig(choice, "finish_reason") == "length",
        [
            (token, float(min(max(logprob, -1e6), 1e6)))  # whole numbers may be too large for a float
            for token, logprob in pairs
            if isinstance(token, str) and type(logprob) in (int, float)
        ],
    )


def dump_answer(answer: Answer) -> str:
    """An answer for the cache."""
    return json.dumps([answer.text, answer.cut, answer.first_token])


def load_answer(stored: str) -> Answer:
    """An answer from the cache; a garbled one has no verdict and is requested again."""
    try:
        text, cut, first_token = json.loads(stored)
        return Answer(str(text), bool(cut), [(str(token), float(logprob)) for token, logprob in first_token])
    except (ValueError, TypeError):
        return Answer("", False, [])


MOST_MASS = 1.01
"""The largest total probability of the candidates for one token, including rounding."""


def is_distribution(candidates: list[tuple[str, float]]) -> bool:
    """Whether log-probabilities of candidates are valid for one token: no duplicates, total mass at most 1.

    The same text may occur twice, since several tokens may spell it, but hardly with the same probability.
    """
    if not all(logprob < 1 for _, logprob in candidates):  # nor is NaN
        return False
    likely = [candidate for candidate in candidates if candidate[1] > math.log(0.01)]
    once = len(set(likely)) == len(likely)
    return once and sum(math.exp(logprob) for _, logprob in candidates) <= MOST_MASS


def read(answer: Answer, answers: AnswersConfig) -> float | None:
    """The probability that the first completion wins; None if the answer has no verdict.

    p₁ / (p₁ + p₂) of the first token, with a tie's share split, if most of the mass is on verdicts. Invalid
    probabilities give no verdict, since the server's other output cannot be trusted either. Otherwise the text decides:
    it must name exactly one verdict, and begin or end with it. Thoughts in <think> are ignored.
    """
    if not is_distribution(answer.first_token):
        return None
    values = {answers.first: 1.0, answers.second: 0.0} | ({} if answers.tie is None else {answers.tie: 0.5})
    masses = [
        (math.exp(logprob), values[token.strip()]) for token, logprob in answer.first_token if token.strip() in values
    ]
    total = sum(mass for mass, _ in masses)
    if total > 0.5:
        return sum(mass * value for mass, value in masses) / total
    spoken = answer.text.rpartition("</think>")[2].partition("<think>")[0]
    words = "|".join(map(re.escape, sorted(values, key=len, reverse=True)))
    # Match whole words only, not parts of numbers: 10, 1.5 and 2/10 are not verdicts.
    named = list(re.finditer(rf"(?<!\w)(?<!\d[.,/])({words})(?!\w|[.,/]\d)", spoken))
    if len({word[1] for word in named}) != 1:
        return None
    opens = not re.search(r"\w", spoken[: named[0].start()])
    closes = not re.search(r"\w", spoken[named[-1].end() :]) and not answer.cut
    return values[named[0][1]] if opens or closes else None


def dig(value: Any, *path: str | int) -> Any:
    """`value[a][b]…`; None if it does not exist."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value
