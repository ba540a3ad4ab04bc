"""Chat templates that a command line names by their files, as text: a run needs no file to go on."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from alignrun.config import Config, GenerateConfig, PreferenceEvaluationConfig, TournamentConfig
from alignrun.errors import InputError
from alignrun.security.files import MEGABYTE, read_bytes

Root = TypeVar("Root", Config, TournamentConfig, PreferenceEvaluationConfig, GenerateConfig)


def with_templates(config: Root) -> Root:
    """The configuration with the text of each template in place of its file.

    Raises:
        InputError: there is no such file, or it is not UTF-8, too large, or no template.
    """
    for group in ("model", "preference"):
        section: Any = getattr(config, group, None)
        value = getattr(section, "chat_template", None)
        if value and "{" not in value:  # every template that writes a message has braces
            text = _text(f"config: {group}.chat_template={value}", value)
            changed: Any = {group: replace(section, chat_template=text)}
            config = replace(config, **changed)
    return config


def _text(where: str, name: str) -> str:
    file = Path(name).expanduser()
    if not file.is_file():
        raise InputError(f"{where} is neither a Jinja template nor a file: check the path")
    try:
        text = read_bytes(file.resolve(), MEGABYTE).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: save the file as UTF-8") from error
    if "{" not in text:
        raise InputError(f"{where} holds no Jinja template: it writes no message")
    return text
