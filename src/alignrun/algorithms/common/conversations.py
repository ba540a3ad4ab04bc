"""Conversations in which the policy speaks more than once: its later prompts hold what it has said before.

Legend: B prompts, K conversations of each, H turns of the policy, P tokens of a later prompt, T of a completion.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignrun.algorithms.base import Tools
from alignrun.algorithms.common.online import OnlineAlgorithm
from alignrun.algorithms.common.stacking import pad_completions, stack
from alignrun.config import Config
from alignrun.data.dataset import Dataset
from alignrun.data.encoding import Encoding
from alignrun.data.follow_up import FollowUps
from alignrun.data.padding import prompt_batch
from alignrun.data.prompts import PromptSet
from alignrun.data.values import BadRowError
from alignrun.errors import InputError, RunError
from alignrun.generation.streams import Stream
from alignrun.models.device import batch_to
from alignrun.models.sources import context_length
from alignrun.types import Completions, Example, Prompt, PromptBatch, Role, map_parts

TOKEN_CHARACTERS = 3
"""Characters of a token in English text, fewer than usual, for lengths that are planned without a tokenizer."""
MARKS = 16
"""Tokens that a chat template writes around a turn and its answer, more than usual, for the same."""


@dataclass(frozen=True, slots=True)
class Conversations:
    """What the policy said in K conversations for each of B prompts, each with prompts of its own after the first."""

    prompts: PromptBatch
    first: Completions
    """[B, K, T]"""
    later_ids: Tensor
    """[B, K, H−1, P] the later prompts, padded on the left."""
    later_attention: Tensor
    """[B, K, H−1, P]"""
    later: Completions
    """[B, K, H−1, T]"""

    def turns(self) -> Iterator[tuple[PromptBatch, Completions]]:
        """The prompts and completions of each turn: first B and B·K, then B·K of both."""
        yield self.prompts, self.first.flat()
        for place in range(self.later_ids.shape[2]):
            ids, attention = (part[:, :, place].flatten(0, 1) for part in (self.later_ids, self.later_attention))
            said = map_parts(self.later, partial(_of_turn, place))
            yield PromptBatch(("",) * len(ids), ids, attention, padded=True), said


class ConversationAlgorithm(OnlineAlgorithm):
    """Samples conversations of a fixed number of turns, and sees that they fit into the model's context."""

    def __init__(self, config: Any, tools: Tools) -> None:
        super().__init__(config, tools)
        policy, settings = tools.policy, tools.config
        self.temperature = settings.generation.temperature
        rows = policy.model.get_input_embeddings().num_embeddings
        self.follow_ups = FollowUps(policy.tokenizer, settings.model.system_prompt, rows)
        self._room = context_length(policy.model.config) - settings.generation.max_new_tokens

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """The policy's first answers; what follows in a conversation is drawn after them, one of each."""
        samples = config.algo.samples_per_prompt
        return (Stream(Role.policy, samples, learned=samples),)

    @classmethod
    @abstractmethod
    def added_tokens(cls, config: Any, follow_ups: FollowUps, max_new_tokens: int) -> int:
        """Tokens that the longest later prompt may have beyond those of the first."""

    @classmethod
    def dataset(cls, config: Any, examples: Sequence[Example], encoding: Encoding) -> Dataset[Any]:
        """Encode the prompts that leave room for the whole conversation.

        Raises:
            InputError: as `PromptSet.build`, or no prompt leaves that room.
        """
        follow_ups = FollowUps(encoding.tokenizer, encoding.system_prompt, encoding.rows)
        added = cls.added_tokens(config, follow_ups, encoding.max_new_tokens)
        if added + encoding.max_new_tokens >= encoding.context:
            raise InputError(
                f"config: algo={cls.name}: its later prompts are up to {added} tokens longer than the first, and "
                f"generation.max_new_tokens={encoding.max_new_tokens} more are sampled: the {encoding.context} tokens "
                "of the model have no room for a prompt: lower generation.max_new_tokens"
            )
        return PromptSet.build(examples, replace(encoding, context=encoding.context - added))

    def _batch(self, rows: Sequence[list[int]], prompts: Sequence[Prompt]) -> PromptBatch:
        """[N, P] later prompts. Raises RunError for one that leaves no room for an answer."""
        longest = max(map(len, rows))
        if longest > self._room:
            raise RunError(
                f"algo={self.name}: a later prompt of a conversation has {longest} tokens, and the model has room for "
                f"{self._room}: set data.max_prompt_tokens lower by {longest - self._room}, or lower "
                "generation.max_new_tokens"
            )
        return batch_to(prompt_batch(prompts, rows, self.tools.policy.tokenizer.pad_token_id), self._device)

    def say(self, role: Role, batch: PromptBatch, step: int, purpose: int) -> tuple[Completions, list[str]]:
        """[N, T] one completion of a role for each of N later prompts, and their texts."""
        (drawn,) = self.rollouts.sample(batch, [Stream(role, 1)], step, purpose=purpose, judged=False)
        (texts,) = self.rollouts.texts(drawn)
        return map_parts(drawn, lambda part: None if part is None else part[:, 0]), texts

    def later_prompts(self, prompts: Sequence[Prompt]) -> PromptBatch:
        """[N, P] later prompts of the policy. Raises RunError for one that cannot be written or has no room."""
        return self._batch(_written(self.follow_ups.encode(prompt) for prompt in prompts), prompts)

    def user_prompts(self, prompts: Sequence[Prompt], answers: Sequence[str], instruction: str) -> PromptBatch:
        """[N, P] the same conversations, where their users speak next. Raises as `later_prompts`."""
        rows = _written(
            self.follow_ups.encode_for_user(prompt, answer, instruction)
            for prompt, answer in zip(prompts, answers, strict=True)
        )
        return self._batch(rows, prompts)

    @property
    def _device(self) -> torch.device:
        return self.tools.policy.device


def joined(
    prompts: PromptBatch, first: Completions, later: Sequence[tuple[PromptBatch, Completions]], pad_id: int
) -> Conversations:
    """K conversations of each of B prompts, from the first completions [B, K, T] and N = B·K of each later turn."""
    shape = first.tokens.shape[:2]
    width = max(batch.input_ids.shape[1] for batch, _ in later)
    length = max(said.tokens.shape[1] for _, said in later)
    ids, attention = (
        torch.stack([_pad_left(part, width, fill).unflatten(0, shape) for part in parts], 2)
        for parts, fill in (
            ([batch.input_ids for batch, _ in later], pad_id),
            ([batch.attention_mask for batch, _ in later], 0),
        )
    )
    said = stack([pad_completions(one, length, pad_id) for _, one in later])
    said = map_parts(said, lambda part: None if part is None else part.unflatten(0, shape))
    return Conversations(prompts, first, ids, attention, said)


def _of_turn(place: int, part: Tensor | None) -> Tensor | None:
    """[B·K, …] of one later turn, from [B, K, H−1, …]."""
    return None if part is None else part[:, :, place].flatten(0, 1)


def planned_tokens(text: str) -> int:
    """About how many tokens a reply adds to a prompt, with the marks around it and an answer, and not fewer."""
    return len(text) // TOKEN_CHARACTERS + MARKS


def _pad_left(part: Tensor, width: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(part, (width - part.shape[1], 0), value=fill)


def _written(rows: Iterator[list[int]]) -> list[list[int]]:
    try:
        return list(rows)
    except BadRowError as error:
        raise RunError(str(error)) from error
