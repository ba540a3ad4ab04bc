"""A language model as judge, on an OpenAI-compatible server: preference.url=URL preference.model=NAME."""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch
from torch import Tensor

from alignrun import distributed
from alignrun.errors import RunError
from alignrun.models.sources import cache_folder
from alignrun.preferences.base import Judgment, Preference, preference
from alignrun.preferences.judge.cache import AnswerCache
from alignrun.preferences.judge.client import JudgeClient
from alignrun.preferences.judge.config import PLACEHOLDERS, JudgeConfig
from alignrun.preferences.judge.verdict import dump_answer, is_distribution, load_answer, read
from alignrun.security.text import counted

Question = tuple[str, str, str]
"""Prompt, first and second completion, in the order in which the judge sees them."""


@dataclass(slots=True)
class Stats:
    """What the judge was asked so far, each order of a pair counted once."""

    asked: int = 0
    """Questions that the server answered."""
    cached: int = 0
    """Questions that the cache answered."""
    unclear: int = 0
    """Answers that were no verdict."""


FEW = 20
"""A call of fewer questions is judged as one of so many: one strange answer of four must not end a run."""


class JudgePreference(Preference):
    """P(y ≻ y' | x) = ½ (p(y, y') + 1 − p(y', y)): both orders are asked, whatever the judge thinks of the order."""

    def __init__(self, config: JudgeConfig, cache: AnswerCache | None) -> None:
        self._config, self._cache = config, cache
        self._client = JudgeClient(config)
        self.stats = Stats()

    def counts(self) -> dict[str, float]:
        """What was asked, found in the cache, and answered without a verdict, since the start, by all processes."""
        counted = asdict(self.stats)
        total = distributed.all_reduce_sum(torch.tensor([float(value) for value in counted.values()])).tolist()
        return {f"judge/{name}": value for name, value in zip(counted, total, strict=True)}

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] the average of both orders; equal completions tie without being judged. Processes share the questions."""
        return self.judge(prompts, first, second).probabilities

    def judge(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Judgment:
        """Both orders by themselves, and their average."""
        rows = list(zip(prompts, first, second, strict=True))
        wins = distributed.by_share(len(rows), lambda share: self._wins([rows[row] for row in share]))
        return Judgment.in_both_orders(0.5 + (wins[:, 0] - wins[:, 1]) / 2, wins)

    def _wins(self, rows: Sequence[Question]) -> Tensor:
        """[B, 2] how likely the completion shown first wins, in both orders."""
        pairs = [(prompt, one, other) for prompt, one, other in rows if one != other]
        verdicts = asyncio.run(self._judge([*pairs, *map(swapped, pairs)])) if pairs else {}
        wins = [[verdicts.get(row, 0.5), verdicts.get(swapped(row), 0.5)] for row in rows]
        return torch.tensor(wins, dtype=torch.float32).reshape(-1, 2)

    async def _judge(self, questions: Iterable[Question]) -> dict[Question, float]:
        """p(y, y') of every question, each asked once."""
        unclear: list[str] = []
        slots = asyncio.Semaphore(max(1, self._config.concurrency // distributed.size()))
        async with self._client.connect() as connection:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        question: group.create_task(self._verdict(connection, slots, question, unclear))
                        for question in dict.fromkeys(questions)
                    }
            except ExceptionGroup as errors:  # the others were cancelled; what they had answered is in the cache
                raise errors.exceptions[0] from errors
        self.stats.unclear += len(unclear)
        if len(unclear) > self._config.max_unclear * max(FEW, len(tasks)):
            raise RunError(
                f"preference=judge: {len(unclear)} of {counted(len(tasks), 'answer')} of {self._config.model} are no "
                f"verdict, as {' '.join(unclear[0].split())[:100]!r}: change preference.template, preference.answers "
                "or preference.max_tokens, set preference.use_logprobs=false, or raise preference.max_unclear, then "
                "repeat the command, or `alignrun resume RUN`"
            )
        return {question: task.result() for question, task in tasks.items()}

    async def _verdict(
        self, connection: httpx2.AsyncClient, slots: asyncio.Semaphore, question: Question, unclear: list[str]
    ) -> float:
        """p(y, y') from the cache, else from the server; ½ for an answer that goes into `unclear`."""
        request = self._request(question)
        key = hashlib.sha256(json.dumps([self._client.url, request], sort_keys=True).encode()).hexdigest()
        known = None if self._cache is None else self._cache.get(key)
        verdict = None if known is None else read(load_answer(known), self._config.answers)
        if verdict is not None:
            self.stats.cached += 1
            return verdict
        async with slots:
            answer = await self._client.ask(connection, request)
        self.stats.asked += 1
        verdict = read(answer, self._config.answers)
        if verdict is None:
            possible = is_distribution(answer.first_token)
            unclear.append(answer.text if possible else f"{answer.text[:60]} with impossible log-probabilities")
            return 0.5
        if self._cache is not None:
            self._cache.put(key, dump_answer(answer))
        return verdict

    def _request(self, question: Question) -> dict[str, Any]:
        """The body that asks it: with the URL, all that determines the answer."""
        config = self._config
        system = [] if config.system_prompt is None else [{"role": "system", "content": config.system_prompt}]
        request = {
            "model": config.model,
            "messages": [*system, {"role": "user", "content": fill(config.template, question)}],
            "temperature": 0,
            "max_tokens": config.max_tokens,
            **({"logprobs": True, "top_logprobs": 20} if config.use_logprobs else {}),
            **config.extra,
        }
        return {name: value for name, value in request.items() if value is not None}


def swapped(question: Question) -> Question:
    """The same pair in the other order."""
    prompt, first, second = question
    return prompt, second, first


def fill(template: str, question: Question) -> str:
    """The template with the texts in its places, in one pass: braces within the texts stay what they are."""
    texts = dict(zip(PLACEHOLDERS, question, strict=True))
    return re.sub(rf"\{{({'|'.join(PLACEHOLDERS)})\}}", lambda place: texts[place[1]], template)


@preference("judge", JudgeConfig)
def build(config: JudgeConfig) -> JudgePreference:
    """The preference that the configuration asks for."""
    if config.cache is False:
        return JudgePreference(config, None)
    path = cache_folder() / "judge.sqlite" if config.cache is True else Path(str(config.cache)).expanduser()
    return JudgePreference(config, AnswerCache(path))
