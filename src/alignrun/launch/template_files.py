"""Reads the chat templates that a command line names by their files: a run keeps the text and needs no file."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from alignrun.config import Config, GenerateConfig, PreferenceEvaluationConfig, TournamentConfig
from alignrun.errors import InputError
from alignrun.security.files import MEGABYTE, read_bytes
from alignrun.security.text import clean

Root = TypeVar("Root", Config, TournamentConfig, PreferenceEvaluationConfig, GenerateConfig)


def with_templates(config: Root) -> Root:
    """The configuration with the text of each template in place of its file.

    Raises:
        InputError: there is no such file, or it is not UTF-8, too large, or no template.
    """
    for group in ("model", "preference", "selector"):
        section: Any = getattr(config, group, None)
        written: Any = {group: _with_template(section, group)}
        if written[group] is not section:
            config = replace(config, **written)
    return config


def _with_template(section: Any, place: str) -> Any:
    """A section with its own template, or those of its members, as text."""
    changed: dict[str, Any] = {}
    value = getattr(section, "chat_template", None)
    if value and "{" not in value:  # every template that writes a message has braces
        changed["chat_template"] = _text(f"config: {place}.chat_template={value}", value)
    if members := getattr(section, "members", None):
        written = {name: _with_template(one, f"{place}.members.{name}") for name, one in members.items()}
        if any(written[name] is not members[name] for name in members):
            changed["members"] = written
    return replace(section, **changed) if changed else section


def _text(where: str, name: str) -> str:
    try:
        file = Path(name).expanduser()
        found = file.is_file()
    except (OSError, ValueError, RuntimeError):  # not a path: too long, or the home of an unknown user
        found = False
    if not found:
        raise InputError(f"{clean(where, 200)} is neither a Jinja template nor a file: check the path")
    try:
        text = read_bytes(file.resolve(), MEGABYTE).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: save the file as UTF-8") from error
    if "{" not in text:
        raise InputError(f"{where} holds no Jinja template: it writes no message")
    return text
