"""A language model as the judge, behind any server that speaks OpenAI's chat completions: vLLM, llama.cpp, OpenAI."""

import asyncio
import hashlib
import json
import math
import os
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import torch
from omegaconf import MISSING
from torch import Tensor

from alignrun.config import require, schema
from alignrun.errors import InputError, RunError, one_line
from alignrun.models.sources import cache_folder
from alignrun.preferences.base import Preference, preference
from alignrun.preferences.judge_cache import AnswerCache

TEMPLATE = """\
Two assistants answered the same request. Which answer is better: more correct, more helpful, clearer? \
Neither length nor the order in which they are shown is a merit.

[Request]
{prompt}

[Answer 1]
{first}

[Answer 2]
{second}

[Verdict]
Reply with a single digit and nothing else: 1 if answer 1 is better, 2 if answer 2 is better, 0 if they are equally \
good."""

PLACEHOLDERS = ("prompt", "first", "second")
LONGEST_WAIT = 60.0
"""Seconds between two attempts, whatever the backoff or the server says."""
_jitter = random.Random()  # of its own: the numbers that a seed fixes elsewhere are not drawn from here


@schema
class AnswersConfig:
    """How the judge writes its verdict; one token each where logprobs are used."""

    first: str = "1"
    second: str = "2"
    tie: str | None = "0"
    """null where the template offers no tie."""


@schema
class JudgeConfig:
    """Which model judges, how it is asked, and how patiently."""

    name: str = "judge"
    url: str = MISSING
    """What `/chat/completions` is appended to, as http://localhost:8000/v1."""
    model: str = MISSING
    """The name by which the server knows the model."""
    template: str = TEMPLATE
    """The user's message, with {prompt}, {first} and {second} once each."""
    system_prompt: str | None = None
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    use_logprobs: bool = True
    """Read P from the probabilities of the first token; the text counts where the server does not give them."""
    max_tokens: int = 8
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of the request, as `chat_template_kwargs: {enable_thinking: false}`; null takes one out."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable with the API key; unset, none is sent."""
    timeout_seconds: float = 60.0
    retries: int = 6
    backoff: float = 1.0
    """Seconds before the first retry, doubled before each one that follows."""
    concurrency: int = 16
    """Requests in flight at once."""
    cache: bool | str = True
    """Where answers are kept: a file, true for one in the user's cache folder, or false for nowhere."""
    max_unclear: float = 0.1
    """The share of a batch's questions to which the judge may give no verdict; those count as ties."""

    def __post_init__(self) -> None:
        require(
            _is_base(self.url),
            "preference.url",
            f"must be http(s)://HOST[:PORT]/PATH with no query; a password or key belongs into ${self.key_variable}",
        )
        require(bool(self.model), "preference.model", "is missing: name it as the server does")
        for name in PLACEHOLDERS:
            found = self.template.count(f"{{{name}}}")
            require(found == 1, "preference.template", f"must hold {{{name}}} once, not {found} times")
        words = [word for word in (self.answers.first, self.answers.second, self.answers.tie) if word is not None]
        require(
            all(word == word.strip() != "" for word in words) and len(set(words)) == len(words),
            "preference.answers",
            f"must be different words, not {words}",
        )
        require(self.max_tokens >= 1, "preference.max_tokens", "must be at least 1")
        require(bool(self.key_variable), "preference.key_variable", "must name an environment variable")
        require(0 < self.timeout_seconds < math.inf, "preference.timeout_seconds", "must be positive")
        require(self.retries >= 0, "preference.retries", "must not be negative")
        require(0 <= self.backoff < math.inf, "preference.backoff", "must not be negative")
        require(self.concurrency >= 1, "preference.concurrency", "must be at least 1")
        require(0 <= self.max_unclear <= 1, "preference.max_unclear", f"must lie in [0, 1], not {self.max_unclear}")


Question = tuple[str, str, str]
"""Prompt, first and second completion, in the order in which the judge sees them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a verdict is read from."""

    text: str
    cut: bool
    """Whether `max_tokens` ended it."""
    first_token: list[tuple[str, float]]
    """The candidates for the first token and their log-probabilities; empty where the server gives none."""


@dataclass(slots=True)
class Stats:
    """What the judge was asked so far, each order of a pair counted once."""

    asked: int = 0
    """Questions that the server answered."""
    cached: int = 0
    """Questions that the cache answered."""
    unclear: int = 0
    """Answers that were no verdict."""


class JudgePreference(Preference):
    """P(y ≻ y' | x) = ½ (p(y, y') + 1 − p(y', y)): both orders are asked, whatever the judge thinks of the order."""

    def __init__(self, config: JudgeConfig, cache: AnswerCache | None) -> None:
        self._config, self._cache = config, cache
        self._url = f"{config.url.rstrip('/')}/chat/completions"
        self._key = api_key(config.key_variable)
        self.stats = Stats()

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] the average of both orders; equal completions tie without being judged."""
        rows = list(zip(prompts, first, second, strict=True))
        pairs = [(prompt, one, other) for prompt, one, other in rows if one != other]
        verdicts = asyncio.run(self._judge([*pairs, *map(swapped, pairs)])) if pairs else {}
        leads = [verdicts[row] - verdicts[swapped(row)] if row in verdicts else 0.0 for row in rows]
        return 0.5 + torch.tensor(leads, dtype=torch.float32) / 2

    async def _judge(self, questions: Iterable[Question]) -> dict[Question, float]:
        """p(y, y') of every question, each asked once."""
        unclear: list[str] = []
        slots = asyncio.Semaphore(self._config.concurrency)
        async with self._client() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        question: group.create_task(self._verdict(client, slots, question, unclear))
                        for question in dict.fromkeys(questions)
                    }
            except ExceptionGroup as errors:  # the others were cancelled; what they had answered is in the cache
                raise errors.exceptions[0] from errors
        self.stats.unclear += len(unclear)
        if len(unclear) > self._config.max_unclear * len(tasks):
            raise RunError(
                f"preference=judge: {len(unclear)} of {len(tasks)} answers of {self._config.model} are no verdict, as "
                f"{' '.join(unclear[0].split())[:100]!r}: mend preference.template, preference.answers or "
                "preference.max_tokens, or raise preference.max_unclear, then `alignrun resume RUN`"
            )
        return {question: task.result() for question, task in tasks.items()}

    async def _verdict(
        self, client: httpx2.AsyncClient, slots: asyncio.Semaphore, question: Question, unclear: list[str]
    ) -> float:
        request = self._request(question)
        key = hashlib.sha256(json.dumps([self._url, request], sort_keys=True).encode()).hexdigest()
        known = None if self._cache is None else self._cache.get(key)
        verdict = None if known is None else read(load_answer(known), self._config.answers)
        if verdict is not None:
            self.stats.cached += 1
            return verdict
        async with slots:
            response = await self._post(client, request)
        self.stats.asked += 1
        answer = self._answer(response)
        verdict = read(answer, self._config.answers)
        if verdict is None:
            unclear.append(answer.text)
            return 0.5
        if self._cache is not None:
            self._cache.put(key, json.dumps([answer.text, answer.cut, answer.first_token]))
        return verdict

    def _request(self, question: Question) -> dict[str, Any]:
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

    def _client(self) -> httpx2.AsyncClient:
        config = self._config
        try:
            return httpx2.AsyncClient(
                headers={"Content-Type": "application/json"}
                | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
                timeout=config.timeout_seconds,
                limits=httpx2.Limits(max_connections=config.concurrency),
                follow_redirects=False,  # to wherever it leads, the key would go too
            )
        except (OSError, ValueError, ImportError) as error:  # proxies and certificates come from the environment
            raise RunError(
                f"preference=judge: no connection can be made ({one_line(error, 160)}): check the proxy and "
                "certificate variables of the environment, then `alignrun resume RUN`"
            ) from error

    async def _post(self, client: httpx2.AsyncClient, request: dict[str, Any]) -> httpx2.Response:
        """The server's answer, after as many attempts as it takes.

        Raises:
            RunError: it refuses the request, or does not answer.
        """
        config = self._config
        # Half a surrogate pair, which JSON input can bring in, is no text that a server would take.
        content = json.dumps(request, ensure_ascii=False).encode(errors="replace")
        for attempt in range(config.retries + 1):
            wait = config.backoff * 2.0 ** min(attempt, 32) * _jitter.uniform(0.5, 1)
            try:
                response = await client.post(self._url, content=content)
            except httpx2.TimeoutException:
                problem = f"no answer within {config.timeout_seconds:g} seconds"
            except httpx2.RequestError as error:
                problem = one_line(error, 200)
            else:
                if response.is_success:
                    return response
                problem = f"{response.status_code}: {self._complaint(response)}"
                if response.status_code < 500 and response.status_code not in (408, 409, 429):
                    raise RunError(f"preference=judge: {self._url} answered {problem}: {self._advice(response)}")
                wait = max(wait, retry_after(response))
            if attempt < config.retries:
                await asyncio.sleep(min(wait, LONGEST_WAIT))
        raise RunError(
            f"preference=judge: {self._url} failed {config.retries + 1} times ({problem}): start it again or wait, "
            "then `alignrun resume RUN`; what it has answered is kept"
        )

    def _complaint(self, response: httpx2.Response) -> str:
        message = dig(decode(response), "error", "message")
        text = message if isinstance(message, str) else response.text
        return one_line(Exception(self._without_key(text) or response.reason_phrase), 200)

    def _advice(self, response: httpx2.Response) -> str:
        """What to do about a refusal."""
        if response.has_redirect_location:
            return f"set preference.url to where it leads, {self._without_key(response.headers['location'])}"
        variable = self._config.key_variable
        return {
            401: f"set {variable} to a key that it takes",
            403: f"check what the key in {variable} is allowed",
            404: f"check preference.model={self._config.model} and preference.url",
        }.get(
            response.status_code,
            "check preference.model and preference.extra; set preference.use_logprobs=false if it offers no logprobs",
        )

    def _answer(self, response: httpx2.Response) -> Answer:
        """Text and first token of the first choice; empty where the server talks nonsense."""
        choice = dig(decode(response), "choices", 0)
        text = dig(choice, "message", "content")
        top = dig(choice, "logprobs", "content", 0, "top_logprobs")
        candidates = top if isinstance(top, list) else []
        pairs = [(dig(candidate, "token"), dig(candidate, "logprob")) for candidate in candidates]
        return Answer(
            self._without_key(text) if isinstance(text, str) else "",
            dig(choice, "finish_reason") == "length",
            [
                (self._without_key(token), float(logprob))
                for token, logprob in pairs
                if isinstance(token, str) and isinstance(logprob, (int, float)) and abs(logprob) < 1e6
            ],
        )

    def _without_key(self, text: str) -> str:
        """What a server says, even where it quotes the key."""
        return text.replace(self._key, "[key]") if self._key else text


def swapped(question: Question) -> Question:
    """The same pair in the other order."""
    prompt, first, second = question
    return prompt, second, first


def fill(template: str, question: Question) -> str:
    """The template with the texts in its places, in one pass: braces within the texts stay what they are."""
    texts = dict(zip(PLACEHOLDERS, question, strict=True))
    return re.sub(rf"\{{({'|'.join(PLACEHOLDERS)})\}}", lambda place: texts[place[1]], template)


def read(answer: Answer, answers: AnswersConfig) -> float | None:
    """The probability that the first completion wins; None where the answer is no verdict.

    p₁ / (p₁ + p₂) of the first token, a tie's share being split, where most of its mass is on verdicts. Otherwise
    the text decides: it must name one of them only, and begin or end with it. Thoughts in <think> do not count.
    """
    values = {answers.first: 1.0, answers.second: 0.0} | ({} if answers.tie is None else {answers.tie: 0.5})
    masses = [
        (math.exp(logprob), values[token.strip()])
        for token, logprob in answer.first_token
        if token.strip() in values and logprob < 1
    ]
    total = sum(mass for mass, _ in masses)
    if total > 0.5:
        return sum(mass * value for mass, value in masses) / total
    spoken = answer.text.rpartition("</think>")[2].partition("<think>")[0]
    words = "|".join(map(re.escape, sorted(values, key=len, reverse=True)))
    # Whole words only, and no parts of numbers: neither 10 nor 1.5 nor 2/10 is a verdict.
    named = list(re.finditer(rf"(?<!\w)(?<!\d[.,/])({words})(?!\w|[.,/]\d)", spoken))
    if len({word[1] for word in named}) != 1:
        return None
    opens = not re.search(r"\w", spoken[: named[0].start()])
    closes = not re.search(r"\w", spoken[named[-1].end() :]) and not answer.cut
    return values[named[0][1]] if opens or closes else None


def load_answer(stored: str) -> Answer:
    """An answer from the cache; one that is garbled is no verdict, and asked for again."""
    try:
        text, cut, first_token = json.loads(stored)
        return Answer(str(text), bool(cut), [(str(token), float(logprob)) for token, logprob in first_token])
    except (ValueError, TypeError):
        return Answer("", False, [])


def api_key(variable: str) -> str:
    """The key in an environment variable, or nothing. Raises InputError where no header could carry it."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"preference.key_variable: {variable} holds characters that no key has: set it again")
    return key


def retry_after(response: httpx2.Response) -> float:
    """The seconds that a server asks to wait, given as such or as a date; 0 where it does not."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def decode(response: httpx2.Response) -> Any:
    """The JSON of a response; None where it is none."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def dig(value: Any, *path: str | int) -> Any:
    """`value[a][b]…`; None where that leads nowhere."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _is_base(url: str) -> bool:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        return False
    there = parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 80) < 1 << 16
    return there and not (parsed.userinfo or {"?", "#"} & set(url))


@preference("judge", JudgeConfig)
def build(config: JudgeConfig) -> JudgePreference:
    """The preference that the configuration asks for."""
    if config.cache is False:
        return JudgePreference(config, None)
    path = cache_folder() / "judge.sqlite" if config.cache is True else Path(str(config.cache)).expanduser()
    return JudgePreference(config, AnswerCache(path))
