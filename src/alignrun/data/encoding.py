"""What it takes to turn examples into token ids."""

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
    """The most tokens that the model reads at once."""
    max_new_tokens: int
    """What sampling needs of them."""
    seed: int
    append_end_of_turn: bool = True
    """Whether completions end with the end of the turn; the actions of a game are single tokens and do not."""
    rows: int | None = None
    """How many tokens the model has embeddings for, where its configuration says so."""
    drawn: Callable[[str], None] | None = None
    """Where many rows may be encoded when they are drawn: what reports those that are left out then."""

    @property
    def pad_id(self) -> int:
        """The token to pad with."""
        return padding_id(self.tokenizer)

    @property
    def limits(self) -> Limits:
        """The most tokens of a prompt with its completions."""
        prompt = self.data.max_prompt_tokens or self.context
        return Limits(prompt, self.data.max_completion_tokens, self.context, self.data.too_long)
