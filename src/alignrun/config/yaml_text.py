"""Configuration as YAML text, with the meaning of each key above it."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import yaml

from alignrun.config.keys import Key, keys
from alignrun.security.text import visible

WIDTH = 120


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Texts of several lines as blocks, enumerations by name."""


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "")
)
_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))
_Dumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.name))


def yaml_text(value: Any, flow: bool = False) -> str:
    """A value as YAML, with hidden characters as escapes; mappings on one line with `flow`."""
    options: dict[str, Any] = {"Dumper": _Dumper, "width": 1 << 20, "sort_keys": False, "default_flow_style": flow}
    text = str(yaml.dump(value, allow_unicode=True, **options))
    return text if visible(text) == text else str(yaml.dump(value, **options))


def inline_yaml(value: Any) -> str:
    """A value as the YAML that follows a key; for a text of several lines, only that it is one."""
    text = (
        yaml_text([value], flow=True).strip()[1:-1]
        if isinstance(value, dict)
        else yaml_text({"key": value})[4:].strip()
    )
    return "a text of several lines" if text.startswith("|") else text


def explained(listed: Iterable[Key], values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The lines of a section: the meaning of each key, and its value.

    Args:
        listed: the keys, in the order to write them.
        values: key → value; for a section, the values of its own keys, or None if the section is unset.
        indent: what precedes each line.
    """
    for key in listed:
        yield from meaning(key, indent)
        value = values[key.name]
        if key.section and value is not None:
            yield f"{indent}{key.name}:"
            yield from explained(keys(key.section), value, f"{indent}  ")
        else:
            yield from textwrap.indent(yaml_text({key.name: value}), indent).splitlines()


def meaning(key: Key, indent: str = "") -> list[str]:
    """The meaning of a key as the lines of a comment."""
    choices = f" One of {', '.join(key.choices)}." if key.choices else ""
    if not (text := f"{key.meaning}{choices}"):
        return []
    mark = f"{indent}# "
    return textwrap.wrap(f"{mark}{text}", WIDTH, subsequent_indent=mark, break_on_hyphens=False, break_long_words=False)
