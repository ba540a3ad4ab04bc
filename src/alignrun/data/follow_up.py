"""Later prompts of a conversation: what was asked and answered, and what the user says next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignrun.data.rendering import Renderer
from alignrun.types import Example, Message, Prompt, message_text, prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ORIGIN = "a later prompt of a conversation"
"""Where such a prompt stands, for messages to the user."""
_SWAPPED = {"user": "assistant", "assistant": "user"}


class FollowUps:
    """Writes and encodes later prompts for one tokenizer. Without a chat template, plain text is continued."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None, rows: int | None) -> None:
        self._renderer = Renderer(tokenizer, system_prompt, rows=rows)
        self._unprompted = Renderer(tokenizer, rows=rows)
        self._templated = bool(tokenizer.chat_template)

    def after(self, prompt: Prompt, answer: str, reply: str) -> Prompt:
        """The prompt, the assistant's answer to it, and the user's reply to that."""
        if not self._templated:
            gap = "" if prompt[-1:].isspace() else " "
            return Prompt(f"{prompt}{gap}{answer}\n\n{reply}\n\n", None, prompt.columns)
        said: tuple[Message, ...] = ({"role": "assistant", "content": answer}, {"role": "user", "content": reply})
        turns = (*prompt.turns, *said)
        return Prompt(prompt_text(turns), turns, prompt.columns, prompt.tools)

    def encode(self, prompt: Prompt) -> list[int]:
        """Its token ids, ending where the assistant begins to speak. Raises BadRowError as `encode_prompt`."""
        asked = prompt.turns if self._templated else str(prompt)
        return self._renderer.encode(Example(asked, ORIGIN, tools=prompt.tools))[0]

    def encode_for_user(self, prompt: Prompt, answer: str, instruction: str) -> list[int]:
        """The conversation from the other side, ending where its user begins to speak.

        The instruction is the first turn of the user, and the two have changed places; system turns are left out, since
        the user does not see them. Raises BadRowError as `encode_prompt`.
        """
        swapped: list[Message] = [
            {"role": _SWAPPED[turn["role"]], "content": message_text(turn)}
            for turn in prompt.turns
            if turn["role"] in _SWAPPED
        ]
        opening: Message = {"role": "user", "content": instruction}
        said: Message = {"role": "user", "content": answer}
        turns = (opening, *swapped, said)
        return self._unprompted.encode(Example(turns, ORIGIN))[0]

    def added(self, reply: str) -> int:
        """Tokens by which a reply, and the marks around it and an answer, make a prompt longer."""
        return len(self.encode(self.after(_SHORT, "x", reply))) - len(self.encode(_SHORT))

    def added_for_user(self, instruction: str) -> int:
        """Tokens by which the prompt of the user is longer than that of the assistant before its answer."""
        return len(self.encode_for_user(_SHORT, "x", instruction)) - len(self.encode(_SHORT))


_SHORT = Prompt("x")


def transcript(first: str, later: Sequence[tuple[str, str]]) -> str:
    """A conversation after its prompt as readers see it: the first answer, then each reply with its answer."""
    return "\n\n".join([first, *(f"user: {reply}\n\nassistant: {answer}" for reply, answer in later)])
