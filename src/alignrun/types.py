"""The plain values that cross from one package to another.

Shape legend: B prompts of a batch, P prompt tokens, T completion tokens, R packed rows of S tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Batch = TypeVar("Batch")


class Role(str, Enum):
    """Whose distribution is asked for, in the order in which roles are decoded together."""

    policy = "policy"
    opponent = "opponent"
    """A frozen policy to be beaten."""
    anchor = "anchor"
    """The policy as it was some steps ago."""
    previous = "previous"
    """The policy as it was an iteration before the anchor; the next two are one and two more iterations older."""
    previous_2 = "previous_2"
    previous_3 = "previous_3"
    auxiliary = "auxiliary"
    """The second policy of methods that keep two."""
    average = "average"
    """The moving average of the policy's weights."""
    reference = "reference"
    """The last, since it may be the bare base."""


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str | None
    """None in a turn that does nothing but call tools."""
    name: NotRequired[str]
    tool_calls: NotRequired[Sequence[Mapping[str, Any]]]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]


def message_text(turn: Message) -> str:
    """What a turn says, for readers: its text, else the tools that it calls as JSON."""
    calls = turn.get("tool_calls")
    return turn["content"] or (json.dumps(calls, ensure_ascii=False) if calls else "")


def as_turns(prompt: str | tuple[Message, ...]) -> tuple[Message, ...]:
    """A prompt as a conversation: plain text is one turn of the user."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt


class Prompt(str):
    """A prompt as readers see it, which also holds what a judge may need: its conversation and its row."""

    turns: tuple[Message, ...]
    """The conversation so far."""
    columns: Mapping[str, Any]
    """The other columns of its row, such as `answer` or `category`."""
    tools: tuple[Mapping[str, Any], ...]
    """The tools that the assistant may call in it."""

    def __new__(
        cls,
        text: str,
        turns: tuple[Message, ...] | None = None,
        columns: Mapping[str, Any] | None = None,
        tools: tuple[Mapping[str, Any], ...] = (),
    ) -> Prompt:
        """Plain text is one turn of the user."""
        self = super().__new__(cls, text)
        self.turns, self.columns = as_turns(text) if turns is None else turns, columns or {}
        self.tools = tools
        return self

    @cached_property
    def identity(self) -> str:
        """Differs between any two prompts that a preference may judge differently."""
        return json.dumps([self, self.turns, self.columns], default=str)


def as_prompt(text: str) -> Prompt:
    """The prompt itself, or plain text as one turn of the user."""
    return text if isinstance(text, Prompt) else Prompt(text)


def prompt_text(prompt: str | tuple[Message, ...]) -> str:
    """A prompt as a preference model and a reader see it: without any chat template."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return message_text(prompt[0])
    return "\n\n".join(f"{turn['role']}: {message_text(turn)}" for turn in prompt)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a data set, as text."""

    prompt: str | tuple[Message, ...]
    """Plain text, or the conversation so far."""
    origin: str
    """Where the row stands (`prompts.jsonl:12`), for messages to the user."""
    chosen: str | None = None
    """The completion that more people prefer, in preference data; the only one, in a demonstration."""
    rejected: str | None = None
    """The other completion, in preference data."""
    label: float = 1.0
    """P(chosen ≻ rejected), in [½, 1]."""
    votes: tuple[float, ...] = ()
    """What each annotator said: 1 for `chosen`, 0 for `rejected`, ½ for a tie; empty if only the label is known."""
    chosen_turns: tuple[Message, ...] = ()
    """The turns of `chosen` where it is more than one text; `chosen` is then what readers see of them."""
    rejected_turns: tuple[Message, ...] = ()
    """The same for `rejected`."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The tools that the assistant may call, as chat templates take them."""
    columns: Mapping[str, Any] | None = None
    """The other columns of its row that the preference reads, where it reads any."""

    @property
    def asked(self) -> Prompt:
        """The prompt as a preference sees it."""
        return Prompt(self.text, as_turns(self.prompt), self.columns, self.tools)

    @property
    def text(self) -> str:
        """The prompt as a preference model and a reader see it: without any chat template."""
        return prompt_text(self.prompt)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts ready for sampling, padded on the left."""

    texts: tuple[str, ...]
    """The prompts as readers see them, length B; those of a data set are `Prompt`s, as preferences see them."""
    input_ids: Tensor
    """[B, P] token ids."""
    attention_mask: Tensor
    """[B, P], 1 on real tokens and 0 on the padding to their left."""
    padded: bool | None = None
    """Whether there is padding: where it is not said, the mask is asked, once and as long as it is on the CPU."""

    def __post_init__(self) -> None:
        if self.padded is None:
            object.__setattr__(self, "padded", bool((self.attention_mask == 0).any()))

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Completions:
    """Sampled completions, padded on the right."""

    tokens: Tensor
    """[B, T] token ids; the end-of-sequence token belongs to the completion."""
    mask: Tensor
    """[B, T] bool, true on the tokens of the completion."""
    drawn_with: Tensor | None = None
    """[B, T] log q of each token by the server that drew it from the policy, 0 on padding; None if none did."""

    def flat(self) -> Completions:
        """K completions of each prompt, [B, K, T], as [B·K, T]."""
        return map_parts(self, lambda part: None if part is None else part.flatten(0, 1))


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Prompts with two completions each, and how likely the first is to be preferred."""

    prompts: PromptBatch
    completions: Completions
    """[B, 2, T] the chosen, then the rejected one."""
    labels: Tensor
    """[B] float32, P(chosen ≻ rejected)."""
    reference: Tensor | None = None
    """[B, 2] float32, log μ of the completions as sums over their tokens, where it was computed ahead."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Demonstrations laid end to end in R rows of S tokens; attention must not cross from one to the next."""

    input_ids: Tensor
    """[R, S] token ids, padded on the right."""
    position_ids: Tensor
    """[R, S] from 0 at the start of each demonstration, and of the padding."""
    targets: Tensor
    """[R, S] bool, true on the tokens of a completion: what is to be predicted from the tokens before."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with two completions and what the preference said, for samples.jsonl and reports."""

    prompt: str
    first: str
    second: str
    preference: float | None
    """P(first ≻ second | prompt); None if nothing judges."""
    first_ended: bool | None = None
    """Whether the first ended by itself rather than at the length limit; None if that is not known."""
    second_ended: bool | None = None
    """The same of the second."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The policy at one step, measured."""

    metrics: dict[str, float]
    """Logged under `eval/`."""
    lines: Sequence[tuple[str, str]]
    """The same for a person: what, and how much."""
    samples: Sequence[Sample] = field(default_factory=tuple)
    files: Mapping[str, str] = field(default_factory=dict)
    """Text to be kept in the run directory, by file name: figures as SVG."""


Evaluator = Callable[[], Evaluation]


def map_parts(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    """A frozen dataclass, and all dataclasses within it, with `function` of each field that is none."""
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{part.name: map_parts(getattr(batch, part.name), function) for part in fields(batch)})
    return function(batch)  # type: ignore[no-any-return]
