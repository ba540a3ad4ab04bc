"""The rows of each format that `alignrun generate` writes."""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignrun.config import Format
from alignrun.errors import InputError
from alignrun.types import Example, as_turns

OutputRow = dict[str, Any]

COLUMNS: Mapping[Format, tuple[str, ...]] = {Format.alpaca_eval: ("dataset",), Format.arena_hard: ("uid",)}
"""The columns of the data that a format copies."""


def check_prompts(examples: Iterable[Example], format: Format) -> None:
    """Raise InputError for a prompt that the format cannot hold."""
    if format is Format.alpaca_eval:
        for example in examples:
            _instruction(example)
    if format is Format.arena_hard:
        for example in examples:
            if not isinstance((example.columns or {}).get("uid"), str):
                raise InputError(
                    f"data: {example.origin} has no text in a column 'uid', which format=arena_hard copies: take "
                    "Arena-Hard-Auto's question.jsonl"
                )


def completion_rows(
    example: Example, texts: Sequence[str], log_probs: Sequence[float], ends: Sequence[bool]
) -> list[OutputRow]:
    """format=jsonl: a row for each of K completions."""
    return [
        {**_asked(example), "completion": text, "sample": number, "log_prob": log_prob, "ended": ended}
        for number, (text, log_prob, ended) in enumerate(zip(texts, log_probs, ends, strict=True))
    ]


def alpaca_row(example: Example, text: str, generator: str) -> OutputRow:
    """format=alpaca_eval: the instruction with its output."""
    copied = {
        name: (example.columns or {})[name] for name in COLUMNS[Format.alpaca_eval] if name in (example.columns or {})
    }
    return {"instruction": _instruction(example), "output": text, "generator": generator, **copied}


def arena_row(example: Example, text: str, generator: str) -> OutputRow:
    """format=arena_hard: the conversation that ends with the answer."""
    uid = (example.columns or {})["uid"]
    answer = {"role": "assistant", "content": {"answer": text}}
    return {
        "uid": uid,
        "ans_id": hashlib.sha256(json.dumps([uid, generator, text]).encode()).hexdigest()[:22],
        "model": generator,
        "messages": [*map(dict, as_turns(example.prompt)), answer],
        "tstamp": time.time(),
    }


def pair_row(example: Example, texts: Sequence[str], table: NDArray[np.float64]) -> OutputRow | None:
    """format=pairs: the completion that beats the others most often, on average, and the one that does so least often.

    None if they are equal, or the first is not preferred to the second: they tie, or stand in a cycle. Blank
    completions take no part. Shape: table [K, K], P(y_i ≻ y_j | x).
    """
    places = [place for place, text in enumerate(texts) if text.strip()]
    if len(places) < 2:
        return None
    among = table[np.ix_(places, places)]
    means = (among.sum(1) - among.diagonal()) / (len(places) - 1)
    best, worst = places[int(means.argmax())], places[int(means.argmin())]
    probability = float(table[best, worst])
    if texts[best].strip() == texts[worst].strip() or not probability > 0.5:
        return None
    return {**_asked(example), "chosen": texts[best], "rejected": texts[worst], "probability": probability}


def file_text(rows: Iterable[OutputRow], format: Format) -> Iterable[str]:
    """The pieces of the file."""
    if format is not Format.alpaca_eval:
        return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return [json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n"]


def _asked(example: Example) -> OutputRow:
    """The prompt as the data have it, so that it can be read again."""
    prompt = example.prompt if isinstance(example.prompt, str) else [dict(turn) for turn in example.prompt]
    return {"prompt": prompt, **({"tools": list(example.tools)} if example.tools else {})}


def _instruction(example: Example) -> str:
    turns = as_turns(example.prompt)
    if len(turns) != 1 or turns[0]["role"] != "user" or not turns[0]["content"] or example.tools:
        raise InputError(
            f"data: {example.origin} is more than one turn of a user, and format=alpaca_eval holds single "
            "instructions: use format=jsonl"
        )
    return turns[0]["content"]
