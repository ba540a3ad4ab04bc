"""The settings for turning examples into token ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignrun.config import DataConfig
from alignrun.data.limits import Limits
from alignrun.data.padding import padding_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the model reads text, and the limits of the configuration."""

    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    system_prompt: str | None
    context: int
    """The model's context length in tokens."""
    max_new_tokens: int
    """The sampling settings."""
    seed: int
    append_end_of_turn: bool = True
    """Whether completions end with the end-of-turn token; the actions of a game do not."""
    rows: int | None = None
    """The number of the model's embeddings, if its configuration has it."""
    drawn: Callable[[str], None] | None = None
    """Reports rows left out when they are drawn, for data sets encoded on demand."""

    @property
    def pad_id(self) -> int:
        """The padding token."""
        return padding_id(self.tokenizer)

    @property
    def limits(self) -> Limits:
        """The maximum number of tokens of a prompt with its completions."""
        prompt = self.data.max_prompt_tokens or self.context
        return Limits(prompt, self.data.max_completion_tokens, self.context, self.data.too_long)
