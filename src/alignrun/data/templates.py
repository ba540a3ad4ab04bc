"""Prompts as token ids, written the way the model was taught to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignrun.errors import InputError, one_line
from alignrun.types import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompt(tokenizer: PreTrainedTokenizerBase, example: Example, system_prompt: str | None) -> list[int]:
    """The token ids of a prompt, ending where the assistant begins to speak.

    With a chat template, plain text is one user turn, and `system_prompt` is put first unless the conversation has a
    system turn. Without one, plain text is continued as it stands. Raises InputError for a conversation or a system
    prompt without a template, a template that refuses the turns, and a prompt of no tokens.
    """
    write = _from_template if tokenizer.chat_template else _from_text
    ids = write(tokenizer, example, system_prompt)
    if not ids:
        raise InputError(f"data: {example.origin}: the prompt has no tokens under this tokenizer; check the row")
    return ids


def _from_template(tokenizer: PreTrainedTokenizerBase, example: Example, system_prompt: str | None) -> list[int]:
    turns: list[Message] = (
        [{"role": "user", "content": example.prompt}] if isinstance(example.prompt, str) else list(example.prompt)
    )
    if system_prompt is not None and all(turn["role"] != "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": system_prompt})
    try:
        # The template writes the special tokens itself, so this call adds none: never two BOS.
        ids: list[int] = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # a template can raise anything that Jinja and Python can
        roles = ", ".join(turn["role"] for turn in turns)
        raise InputError(
            f"data: {example.origin}: the chat template refuses the turns {roles} ({one_line(error)}); "
            "mend the row, model.system_prompt or model.chat_template"
        ) from error
    return ids


def _from_text(tokenizer: PreTrainedTokenizerBase, example: Example, system_prompt: str | None) -> list[int]:
    if not isinstance(example.prompt, str):
        raise InputError(
            f"data: {example.origin}: the prompt is a conversation, and the tokenizer has no chat template; "
            "give one with model.chat_template, or use plain prompts"
        )
    if system_prompt is not None:
        raise InputError(
            "config: model.system_prompt needs a chat template, and the tokenizer has none; "
            "give one with model.chat_template, or set model.system_prompt=null"
        )
    ids: list[int] = list(tokenizer(example.prompt)["input_ids"])
    # Some tokenizers close every text with EOS, after which a model has nothing to say.
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids
