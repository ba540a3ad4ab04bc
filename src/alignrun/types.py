"""The plain values that cross from one package to another.

Shape legend: B prompts of a batch, P prompt tokens, T completion tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from torch import Tensor


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set, as text."""

    prompt: str | tuple[Message, ...]
    """Plain text, or the conversation so far."""
    origin: str
    """Where the row stands (`prompts.jsonl:12`), for messages to the user."""
    chosen: str | None = None
    """The preferred completion, in preference data."""
    rejected: str | None = None
    """The other completion, in preference data."""

    @property
    def text(self) -> str:
        """The prompt as a preference model and a reader see it: without any chat template."""
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) == 1:
            return self.prompt[0]["content"]
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in self.prompt)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts ready for sampling, padded on the left."""

    texts: tuple[str, ...]
    """The prompts as readers and preferences see them, length B."""
    input_ids: Tensor
    """[B, P] token ids."""
    attention_mask: Tensor
    """[B, P], 1 on real tokens and 0 on the padding to their left."""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Completions:
    """Sampled completions, padded on the right."""

    tokens: Tensor
    """[B, T] token ids; the end-of-sequence token belongs to the completion."""
    mask: Tensor
    """[B, T] bool, true on the tokens of the completion."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with two completions and what the preference said, for samples.jsonl and reports."""

    prompt: str
    first: str
    second: str
    preference: float
    """P(first ≻ second | prompt)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The policy at one step, measured."""

    metrics: dict[str, float]
    """Logged under `eval/`."""
    lines: Sequence[tuple[str, str]]
    """The same for a person: what, and how much."""
    samples: Sequence[Sample] = field(default_factory=tuple)


Evaluator = Callable[[], Evaluation]
