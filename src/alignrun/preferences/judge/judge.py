"""A language model as judge, on an OpenAI-compatible server: preference.url=URL preference.model=NAME."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import torch
from torch import Tensor

from alignrun import distributed
from alignrun.errors import RunError
from alignrun.preferences.base import Judgment, Preference, always, preference
from alignrun.preferences.judge.client import JudgeClient
from alignrun.preferences.judge.config import PLACEHOLDERS, JudgeConfig
from alignrun.preferences.judge.verdict import dump_answer, is_distribution, load_answer, read
from alignrun.preferences.served.asking import Asking, Stats, extended, open_cache
from alignrun.preferences.served.cache import AnswerCache
from alignrun.security.text import counted

Question = tuple[str, str, str]
"""Prompt, first and second completion, in the order in which the judge sees them."""


@dataclass(slots=True)
class JudgeStats(Stats):
    """Questions to the judge so far, each order of a pair counted once."""

    unclear: int = 0
    """Answers without a verdict."""


FEW = 20
"""A call with fewer questions counts as one with this many: one unclear answer of four must not end a run."""


class JudgePreference(Preference):
    """P(y ≻ y' | x) = ½ (p(y, y') + 1 − p(y', y)): both orders are asked, which cancels position bias."""

    def __init__(self, config: JudgeConfig, cache: AnswerCache | None) -> None:
        self._config, self._client, self.stats = config, JudgeClient(config), JudgeStats()
        self._asking = Asking(
            self._client, config, cache, self._ask, lambda stored: read(load_answer(stored), config.answers), self.stats
        )

    def counts(self) -> dict[str, float]:
        """Questions asked, cached, and answered without a verdict since the start, over all processes."""
        return self._asking.counts(self._config.name)

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] the average of both orders; equal completions tie without being judged. Processes share the questions."""
        return self.judge(prompts, first, second).probabilities

    def judge(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Judgment:
        """Both orders separately, and their average."""
        rows = list(zip(prompts, first, second, strict=True))
        wins = distributed.by_share(len(rows), lambda share: self._wins([rows[row] for row in share]))
        return Judgment.in_both_orders(0.5 + (wins[:, 0] - wins[:, 1]) / 2, wins)

    def _wins(self, rows: Sequence[Question]) -> Tensor:
        """[B, 2] the probability that the completion shown first wins, in both orders."""
        pairs = [(prompt, one, other) for prompt, one, other in rows if one != other]
        verdicts = self._judge([*pairs, *map(swapped, pairs)])
        wins = [[verdicts.get(row, 0.5), verdicts.get(swapped(row), 0.5)] for row in rows]
        return torch.tensor(wins, dtype=torch.float32).reshape(-1, 2)

    def _judge(self, questions: Iterable[Question]) -> dict[Question, float]:
        """p(y, y') of every question, each asked once; ½ for an answer without a verdict."""
        found = self._asking.all({question: self._request(question) for question in dict.fromkeys(questions)})
        unclear = [self._unclear(answer) for answer, verdict in found.values() if verdict is None]
        self.stats.unclear += len(unclear)
        if len(unclear) > self._config.max_unclear * max(FEW, len(found)):
            raise RunError(
                f"preference=judge: {len(unclear)} of {counted(len(found), 'answer')} of {self._config.model} are no "
                f"verdict, as {' '.join(unclear[0].split())[:100]!r}: change preference.template, preference.answers "
                "or preference.max_tokens, set preference.use_logprobs=false, or raise preference.max_unclear, then "
                "repeat the command, or `alignrun resume RUN`"
            )
        return {question: 0.5 if verdict is None else verdict for question, (_, verdict) in found.items()}

    def _unclear(self, stored: str) -> str:
        """A description of an answer without a verdict."""
        answer = load_answer(stored)
        possible = is_distribution(answer.first_token)
        return answer.text if possible else f"{answer.text[:60]} with impossible log-probabilities"

    async def _ask(self, connection: httpx2.AsyncClient, request: dict[str, Any]) -> str:
        return dump_answer(await self._client.ask(connection, request))

    def _request(self, question: Question) -> dict[str, Any]:
        """The request body; together with the URL it determines the answer."""
        config = self._config
        system = [] if config.system_prompt is None else [{"role": "system", "content": config.system_prompt}]
        request = {
            "model": config.model,
            "messages": [*system, {"role": "user", "content": fill(config.template, question)}],
            "temperature": 0,
            "max_tokens": config.max_tokens,
            **({"logprobs": True, "top_logprobs": 20} if config.use_logprobs else {}),
        }
        return extended(request, config.extra)


def swapped(question: Question) -> Question:
    """The same pair in the other order."""
    prompt, first, second = question
    return prompt, second, first


def fill(template: str, question: Question) -> str:
    """The filled template; filled in one pass, so that braces within the texts are kept."""
    texts = dict(zip(PLACEHOLDERS, question, strict=True))
    return re.sub(rf"\{{({'|'.join(PLACEHOLDERS)})\}}", lambda place: texts[place[1]], template)


@preference("judge", JudgeConfig, by_pair=always)
def build(config: JudgeConfig) -> JudgePreference:
    """The preference that the configuration asks for."""
    return JudgePreference(config, open_cache(config))
