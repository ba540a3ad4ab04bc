"""Text as it grows token by token."""

from typing import Any

UNSETTLED = "\ufffd\u200c\u200d"
"""Characters that the next token may change: bytes that do not form a character yet, and joiners."""


class Unfolding:
    """The text of a completion that is still being drawn, as `decode_texts` will have it."""

    def __init__(self, tokenizer: Any, begun: str) -> None:
        """`begun` is the part of the answer that the chat template writes."""
        self._tokenizer, self._begun = tokenizer, begun
        self._ids: list[int] = []

    def __call__(self, token: int) -> str:
        """Add a token; all of the text that is settled."""
        self._ids.append(token)
        return self.whole.rstrip(UNSETTLED).rstrip()

    @property
    def whole(self) -> str:
        """The text so far."""
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return (self._begun + text).strip()
