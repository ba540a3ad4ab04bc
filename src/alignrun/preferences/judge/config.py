"""The settings of the judge, and the checks that need no server."""

from dataclasses import field
from typing import Any

from omegaconf import MISSING

from alignrun.config import ServedConfig, require, schema

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
"""The fields of a template, each exactly once, in the order of a question's texts."""


@schema
class AnswersConfig:
    """How the judge writes its verdict; one token each if logprobs are used."""

    first: str = "1"
    """The verdict for the first completion."""
    second: str = "2"
    """The verdict for the second completion."""
    tie: str | None = "0"
    """The verdict for a tie; `null` where the template offers none."""


@schema
class JudgeConfig(ServedConfig):
    """The judge's model, its prompt, and its limits."""

    name: str = "judge"
    url: str = MISSING
    """What `/chat/completions` is appended to, such as http://localhost:8000/v1."""
    template: str = TEMPLATE
    """The user's message, with {prompt}, {first} and {second} once each."""
    system_prompt: str | None = None
    """The system message of a request; `null` sends none."""
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    use_logprobs: bool = True
    """Read P from the first token's probabilities; if the server gives none, from the text."""
    max_tokens: int = 8
    """Longest answer of the judge, in tokens."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of the request, such as `chat_template_kwargs: {enable_thinking: false}`; null removes one."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable with the API key; unset, none is sent."""
    max_answer_mb: float = 16.0
    """The largest response that is read, in 10⁶ bytes; long reasoning with log-probabilities takes millions."""
    max_unclear: float = 0.1
    """The share of a batch's questions to which the judge may give no verdict; those count as ties."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
        require(0 <= self.max_unclear <= 1, "preference.max_unclear", f"must lie in [0, 1], not {self.max_unclear}")
