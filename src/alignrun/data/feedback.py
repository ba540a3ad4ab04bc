"""What a feedback model reads: a prompt with one completion (reward model) or two (preference model), in a template.

The text is cut once: the head, up to the first completion, is the same for every completion of a prompt; a tail
holds the completions and whatever follows them. Head and tail are encoded apart, in training as at query time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING, ClassVar

from alignrun.data.completions import end_of_turn
from alignrun.data.pairs import EncodedPair
from alignrun.errors import InputError, one_line
from alignrun.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands for the completions while the chat template is filled in: a character that Unicode keeps free of meaning.
_MARK = "\ue000"


def check_template(template: str, fields: Sequence[str], key: str) -> None:
    """Raise InputError, naming `key`, unless the template holds every `{field}` once and in this order."""
    _cut(template, fields, key)


class FeedbackEncoder:
    """Writes prompts and completions into a template, as token ids.

    Where the tokenizer has a chat template, the filled template is one user turn and the model is about to answer;
    elsewhere it is plain text that ends with EOS. Raises InputError for a template without its fields.
    """

    fields: ClassVar[tuple[str, ...]]
    """`prompt`, then one or two completions."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self._tokenizer = tokenizer
        self._pieces = _cut(template, self.fields, "template")
        self._end = [] if tokenizer.chat_template else [end_of_turn(tokenizer)]

    def encode(self, prompt: str, completions: Sequence[Sequence[str]]) -> tuple[list[int], list[list[int]]]:
        """The head of a prompt and one tail for each tuple of completions: (first, second), or (completion,).

        Raises InputError for a chat template that refuses the text or leaves it out.
        """
        before, after_prompt, *after = self._pieces
        head, closing = self._frame(before + prompt + after_prompt)
        tails = ("".join(text + piece for text, piece in zip(texts, after, strict=True)) for texts in completions)
        return self._encode_head(head), [[*self._encode(tail + closing), *self._end] for tail in tails]

    def encode_pair(self, example: Example) -> EncodedPair:
        """The chosen completion by itself and then the rejected, or both in either order."""
        texts = (str(example.chosen), str(example.rejected))
        head, (first, second) = self.encode(example.text, list(permutations(texts, len(self.fields) - 1)))
        prompt, one, other = (len(self._encode(text)) for text in (example.text, *texts))
        return EncodedPair(tuple(head), tuple(first), tuple(second), plain=(prompt, max(one, other)))

    def _frame(self, head: str) -> tuple[str, str]:
        """The text up to the first completion, and what the chat template writes after the last."""
        if not self._tokenizer.chat_template:
            return head, ""
        turns = [{"role": "user", "content": head + _MARK}]
        try:
            text: str = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template can raise anything that Jinja and Python can
            raise InputError(
                f"data: the feedback model's chat template refuses a user turn ({one_line(error)}); "
                "mend model.chat_template"
            ) from error
        opening, found, closing = text.rpartition(_MARK)
        if not found:
            raise InputError("data: the feedback model's chat template leaves out the user's text; mend it")
        return opening, closing

    def _encode_head(self, text: str) -> list[int]:
        # A chat template has written the special tokens itself.
        ids: list[int] = self._tokenizer(text, add_special_tokens=not self._tokenizer.chat_template)["input_ids"]
        # Some tokenizers close every plain text with EOS, but this one goes on.
        return ids[:-1] if self._end and ids[-1:] == [self._tokenizer.eos_token_id] else ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


class RewardEncoder(FeedbackEncoder):
    """For a reward model: a tail is one completion. A pair is the tails of chosen and of rejected."""

    fields = ("prompt", "completion")


class PreferenceEncoder(FeedbackEncoder):
    """For a preference model: a tail is two completions. A pair is the tails of (chosen, rejected) and the reverse."""

    fields = ("prompt", "first", "second")


def _cut(template: str, fields: Sequence[str], key: str) -> tuple[str, ...]:
    marks = [f"{{{field}}}" for field in fields]
    pattern = "|".join(map(re.escape, marks))
    if re.findall(pattern, template) != marks:
        raise InputError(f"config: {key} must hold {', '.join(marks)}, each once and in this order")
    return tuple(re.split(pattern, template))
