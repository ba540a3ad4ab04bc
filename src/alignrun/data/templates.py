"""Renders conversations as text through the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from alignrun.data.control import UnreadableTextError
from alignrun.errors import InputError, one_line
from alignrun.types import Example, Message, as_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, Any]
_RAISED = (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""Errors of a template, but not interrupts, alarms and out-of-memory errors."""
Tools = Sequence[Mapping[str, Any]]


def write(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    tools: Tools = (),
    *,
    answer: bool,
    template: str | None = None,
) -> str:
    """The turns rendered by the chat template; with `answer`, up to the start of the assistant's answer.

    `template` replaces the tokenizer's.

    Raises UnreadableTextError for a template that refuses the turns.
    """
    try:
        text: str = tokenizer.apply_chat_template(
            list(turns),
            tools=list(tools) or None,
            chat_template=template,
            add_generation_prompt=answer,
            tokenize=False,
        )
    except _RAISED as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise UnreadableTextError(
            f"the chat template refuses the turns {roles} ({one_line(error)}); "
            "change the row, model.system_prompt or model.chat_template"
        ) from error
    return text


def own_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """All text that the chat template writes itself: its source, and its rendering of each role."""
    if not tokenizer.chat_template:
        return ""
    texts = [str(tokenizer.chat_template)]
    for roles in (("user", "assistant", "user"), ("system", "user"), ("user", "assistant", "tool")):
        try:
            texts.append(write(tokenizer, [{"role": role, "content": ""} for role in roles], answer=True))
        except UnreadableTextError:  # not every template knows every role
            continue
    return "\n".join(texts)


def opening_turns(
    tokenizer: PreTrainedTokenizerBase, example: Example, system_prompt: str | None
) -> tuple[Message, ...] | None:
    """The prompt as turns, `system_prompt` first unless it has a system turn; None if plain text is continued.

    Raises UnreadableTextError for a conversation that has no template, and InputError for such a system prompt.
    """
    if tokenizer.chat_template:
        turns = as_turns(example.prompt)
        if system_prompt is not None and all(turn["role"] != "system" for turn in turns):
            return ({"role": "system", "content": system_prompt}, *turns)
        return turns
    if not isinstance(example.prompt, str) or example.tools:
        raise UnreadableTextError(
            "the prompt is a conversation, and the tokenizer has no chat template; "
            "give one with model.chat_template, or use plain prompts"
        )
    if system_prompt is not None:
        raise InputError(
            "config: model.system_prompt needs a chat template, and the tokenizer has none; "
            "give one with model.chat_template, or set model.system_prompt=null"
        )
    return None


def check_written(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], tools: Tools, text: str, *, answer: bool
) -> None:
    """Raise UnreadableTextError if the template left out a turn, a tool call or the tools from `text`.

    Changing a left-out part does not change the text. Reasoning may be left out of all turns but the last.
    """

    def same(changed: Sequence[Turn], named: Tools = tools) -> bool:
        return write(tokenizer, changed, named, answer=answer) == text

    squeezed = squeeze(text)
    for place, turn in enumerate(turns):
        parts = {"content": f"the {turn['role']} turn", "tool_calls": "the tool calls"}
        if place == len(turns) - 1:
            parts["reasoning_content"] = "the reasoning_content"
        for part, what in parts.items():
            value = turn.get(part)
            written = not value or (isinstance(value, str) and squeeze(value) in squeezed)
            if not written and same([*turns[:place], {**turn, part: _renamed(value)}, *turns[place + 1 :]]):
                raise _left_out(what)
    if tools and same(turns, _renamed(tools)):
        raise _left_out("the tools")


def squeeze(text: str) -> str:
    """The text without white space, which templates add and remove."""
    return "".join(text.split())


def _left_out(what: str) -> UnreadableTextError:
    return UnreadableTextError(
        f"the chat template leaves out {what}; give one that writes them with model.chat_template, or change the row"
    )


def _renamed(value: Any) -> Any:
    """Tools or calls with every text replaced."""
    if isinstance(value, Mapping):
        return {key: part if key == "type" else _renamed(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_renamed(part) for part in value]
    return f"{value}x" if isinstance(value, str) else value
