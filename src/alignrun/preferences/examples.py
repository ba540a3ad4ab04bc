"""Example functions to start from: `preference=function preference.function=MODULE:NAME`."""

import re
from collections.abc import Sequence


def letters(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward: the share of ASCII letters in the completion. Even an untrained model can raise it."""
    return [sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text)) for text in completions]


def same_first_letter(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """A preference: the completion that starts with the prompt's first letter wins, otherwise it is a draw."""

    def matches(prompt: str, text: str) -> bool:
        return text[:1].lower() == prompt[:1].lower()

    rows = zip(prompts, first, second, strict=True)
    return [0.5 + 0.5 * (matches(prompt, one) - matches(prompt, other)) for prompt, one, other in rows]


def last_number(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """A verifiable reward: 1 where the last number of the completion is that of the column `answer`, as in GSM8K."""
    numbers = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

    def last(text: str) -> str:
        return str((numbers.findall(text) or [""])[-1]).replace(",", "")

    return [float(last(text) == last(known) != "") for text, known in zip(completions, answer, strict=True)]
