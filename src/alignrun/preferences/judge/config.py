"""The settings of the judge, and the checks that need no server."""

import math
from dataclasses import field
from typing import Any

from omegaconf import MISSING

from alignrun.config import require, schema
from alignrun.config.urls import is_base

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
"""What a template holds once each, in the order of a question's texts."""


@schema
class AnswersConfig:
    """How the judge writes its verdict; one token each where logprobs are used."""

    first: str = "1"
    """The verdict for the first completion."""
    second: str = "2"
    """The verdict for the second completion."""
    tie: str | None = "0"
    """The verdict for a tie; `null` where the template offers none."""


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
    """The system message of a request; `null` sends none."""
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    use_logprobs: bool = True
    """Read P from the probabilities of the first token; the text counts where the server does not give them."""
    max_tokens: int = 8
    """Longest answer of the judge, in tokens."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of the request, as `chat_template_kwargs: {enable_thinking: false}`; null takes one out."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable with the API key; unset, none is sent."""
    timeout_seconds: float = 60.0
    """For one request, until the last byte of its answer."""
    max_answer_mb: float = 16.0
    """The largest response that is read, in 10⁶ bytes; long reasoning with log-probabilities takes millions."""
    retries: int = 6
    """Attempts after the first one, while the server is down, slow or busy."""
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
            is_base(self.url),
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
        require(0 < self.max_answer_mb < math.inf, "preference.max_answer_mb", "must be positive")
        require(self.retries >= 0, "preference.retries", "must not be negative")
        require(0 <= self.backoff < math.inf, "preference.backoff", "must not be negative")
        require(self.concurrency >= 1, "preference.concurrency", "must be at least 1")
        require(0 <= self.max_unclear <= 1, "preference.max_unclear", f"must lie in [0, 1], not {self.max_unclear}")
