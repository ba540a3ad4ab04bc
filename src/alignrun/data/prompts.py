"""A fixed set of prompts to sample from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignrun.config import TooLong
from alignrun.data.dataset import Dataset, Read
from alignrun.data.encoding import Encoding
from alignrun.data.padding import prompt_batch
from alignrun.data.rendering import Renderer
from alignrun.errors import InputError
from alignrun.security.text import counted
from alignrun.types import Example, PromptBatch

_CHANGE = "a smaller generation.max_new_tokens, or another data.max_prompt_tokens"


class PromptSet(Dataset[tuple[int, ...]]):
    """Prompts as text and as token ids, in the order of the data set."""

    @classmethod
    def build(cls, examples: Sequence[Example], encoding: Encoding) -> PromptSet:
        """Encode every prompt.

        Raises InputError for one that cannot be read, or that leaves no room for `max_new_tokens`, or, if those are
        skipped, if none is left.
        """
        room = encoding.context - encoding.max_new_tokens
        if room < 1:
            raise InputError(
                f"config: generation.max_new_tokens={encoding.max_new_tokens} leaves no room for a prompt in the "
                f"{encoding.context} tokens of the model: lower it"
            )
        limit = min(room, encoding.data.max_prompt_tokens or room)
        renderer = Renderer(encoding.tokenizer, encoding.system_prompt, rows=encoding.rows)

        def encode(example: Example) -> tuple[int, ...]:
            return tuple(renderer.encode(example)[0])

        def admit(example: Example, ids: tuple[int, ...]) -> bool:
            if len(ids) > limit and encoding.data.too_long is TooLong.error:
                raise InputError(
                    f"data: {example.origin}: the prompt has {len(ids)} tokens, and the limit is {limit}; "
                    f"set data.too_long=skip, {_CHANGE}"
                )
            return len(ids) <= limit

        def none_left(count: int) -> InputError:
            return InputError(
                f"data: none of the {counted(count, 'prompt')} fits into the limit of {limit} tokens; set {_CHANGE}"
            )

        return cls.select(examples, encoding, encode, admit, none_left)

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts as text, for readers and preferences."""
        return tuple(example.asked for example in self.examples)

    def lengths(self, row: int) -> Mapping[str, int]:
        """The number of tokens of the prompt."""
        return {"prompt": len(self.encoded[row])}

    def shown(self, row: int) -> Sequence[Read]:
        """The prompt."""
        return [Read("prompt", self.encoded[row])]

    def batch(self, rows: Sequence[int]) -> PromptBatch:
        """These prompts, padded on the left."""
        return prompt_batch(
            [self.examples[row].asked for row in rows], [self.encoded[row] for row in rows], self.pad_id
        )
