"""The configured chat template, and statements prepended to a template."""

import json
import re
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignrun.config import ModelConfig
from alignrun.errors import InputError


def configure(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Set the tokenizer's template and the values of its variables from the configuration.

    The values become part of the template, so every rendering uses them, also by a saved tokenizer; a caller of
    `apply_chat_template` may still override them. Raises InputError for a variable that no template reads.
    """
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    for name, value in config.chat_template_kwargs.items():
        key = f"config: model.chat_template_kwargs.{name}"
        if not tokenizer.chat_template:
            raise InputError(f"{key} needs a chat template, and the tokenizer has none: give model.chat_template")
        if not re.search(rf"\b{name}\b", str(tokenizer.chat_template)):
            raise InputError(f"{key} is read nowhere in the chat template: correct the name, or leave it out")
        rewrite(tokenizer, f"{{% set {name} = {name} if {name} is defined else {jinja_literal(value)} %}}".__add__)


def rewrite(tokenizer: PreTrainedTokenizerBase, change: Callable[[str], str]) -> None:
    """Change each of the tokenizer's templates; it may have several, by name."""
    before: str | dict[str, str] = tokenizer.chat_template
    each = before.items() if isinstance(before, dict) else [("", before)]
    # A block tag removes the line feed after it, so an additional one keeps the template's own.
    changed = {name: change("\n" + template) for name, template in each}
    tokenizer.chat_template = changed if isinstance(before, dict) else changed[""]


def with_system_turn(template: str, text: str) -> str:
    """A template that adds a system turn to conversations without one."""
    return (
        "{% if not messages | selectattr('role', 'equalto', 'system') | list %}"
        f"{{% set messages = [{{'role': 'system', 'content': {jinja_literal(text)}}}] + messages | list %}}"
        "{% endif %}" + template
    )


def jinja_literal(value: Any) -> str:
    """A value of JSON in Jinja's spelling."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{jinja_literal(str(name))}: {jinja_literal(part)}" for name, part in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(jinja_literal, value)) + "]"
    # JSON escapes are valid in a Jinja string, except those of non-ASCII characters, which are kept unescaped.
    return json.dumps(value, ensure_ascii=False)
