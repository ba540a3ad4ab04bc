"""`alignrun help TOPIC`: what a key, a group or a choice means."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from alignrun.config import Config
from alignrun.config.keys import Key, summary
from alignrun.config.roots import ROOTS, command_file, command_of
from alignrun.config.shipped import config_folder
from alignrun.config.yaml_text import inline_yaml
from alignrun.errors import InputError
from alignrun.launch.choices import choice_files, choices, first_comment, groups
from alignrun.launch.commands import COMMANDS, VERBS
from alignrun.launch.explaining import known_keys, nearest
from alignrun.launch.key_table import Section, flat_keys, sections
from alignrun.launch.yaml_files import contents

LONGEST = 32
"""Characters of a value that a table of keys shows."""


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key, and the sections that have it with one meaning."""

    key: Key
    sections: list[Section]

    @property
    def remark(self) -> str:
        """The command that a key belongs to; empty for a key of runs."""
        command = command_of(self.sections[0].root)
        return f" (of `alignrun {command}`)" if command else ""


def show_topic(topic: str, console: Console) -> None:
    """Print the help on a key, a group or a choice.

    Raises:
        InputError: there is no such topic, or a file of the user cannot be read.
    """
    group, given, choice = topic.partition("=")
    named = group in groups() or any(section.prefix == f"{group}." for section in sections(Config))
    if given and group in groups():
        _show_choice(group, choice, console)
    elif named and not given:
        _show_group(group, console)
    elif found := find_key(topic):
        before = ""
        for one in found:
            heading = f"{topic}: {' or '.join(one.key.type_names)}{one.remark}"
            if heading != before:
                console.print(heading, style="bold", highlight=False)
            _show_key(topic, one, console)
            before = heading
        if others := [path for path in known_keys() if path.endswith(f".{topic}")]:
            console.print(f"See also {', '.join(others)}.", highlight=False)
    elif own := {command.own_keys[topic]: name for name, command in COMMANDS.items() if topic in command.own_keys}:
        for meaning, name in own.items():
            console.print(f"{topic} (of `alignrun {name}` alone)", style="bold", highlight=False)
            console.print(f"  {meaning}", highlight=False)
    elif inner := [one for section in everywhere() for one in flat_keys(section) if one[0].startswith(f"{topic}.")]:
        table(((path, short(key.default), key) for path, key in dict(inner).items()), console)
    else:
        candidates = sorted({*VERBS, *(key for root in ROOTS.values() for key in known_keys(root))})
        raise InputError(f"help: {topic} is not a key, a group or a command{nearest(topic, candidates)}")


def everywhere() -> list[Section]:
    """All sections of all commands."""
    return [section for root in ROOTS.values() for section in sections(root)]


def find_key(path: str) -> list[FoundKey]:
    """The meanings of a key, each with the sections that give it."""
    found: dict[Any, FoundKey] = {}
    for section in everywhere():
        for name, key in flat_keys(section):
            if name == path:
                alike = section.root, tuple(key.type_names), key.meaning
                found.setdefault(alike, FoundKey(key, [])).sections.append(section)
    return list(found.values())


def _show_key(path: str, found: FoundKey, console: Console) -> None:
    console.print(f"  {found.key.meaning}", highlight=False)
    shown: dict[str, list[str]] = {}
    for choice, value in values(path, found):
        shown.setdefault(short(value), []).append(choice)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for value, owners in shown.items():
        if not all(owners) or (len(shown) == 1 and set(owners) == set(choices(path.partition(".")[0]))):
            grid.add_row(f"  default {value}", "")
        else:
            grid.add_row(f"  default {value}", f"{path.partition('.')[0]}={', '.join(owners)}")
    for name, meaning in found.key.choices.items():
        grid.add_row(f"  {name}", meaning)
    console.print(grid, highlight=False)


def values(path: str, found: FoundKey) -> list[tuple[str, Any]]:
    """(choice, value) for the files that give the key; an empty choice for a key of no group."""
    group, _, name = path.partition(".")
    if group not in groups():
        root = command_file(command_of(found.sections[0].root))
        return [("", value_in(contents(config_folder() / f"{root}.yaml"), path, found.key.default))]
    owners = {section.choice.partition("=")[2] for section in found.sections}
    absent = object()
    listed = []
    for choice, file in sorted(choice_files(group).items()):
        content = contents(file)
        value = value_in(content, name, absent)
        if value is not absent and ("" in owners or schema_of(content) in owners):
            listed.append((choice, value))
    return listed


def schema_of(content: dict[str, Any]) -> str:
    """The name of the class that types a choice; empty if its file does not say."""
    entries = [str(entry) for entry in content.get("defaults") or []]
    return next((entry.removeprefix("schema/").partition("@")[0] for entry in entries if "schema/" in entry), "")


def value_in(content: Any, path: str, default: Any) -> Any:
    """The value of a key in nested dictionaries."""
    for name in path.split("."):
        if not isinstance(content, dict) or name not in content:
            return default
        content = content[name]
    return content


def default_choice(group: str) -> str:
    """The choice of a group that a run without overrides has; empty for none."""
    entries = contents(config_folder() / "config.yaml")["defaults"]
    return next((entry[group] or "" for entry in entries if isinstance(entry, dict) and group in entry), "")


def _show_group(group: str, console: Console) -> None:
    own = [section for section in sections(Config) if section.prefix == f"{group}."]
    common = [section for section in own if not section.choice]
    if common:
        console.print(f"{group}: {summary(common[0].kind)}", highlight=False)
    chosen = default_choice(group)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    for choice, file in sorted(choice_files(group).items()):
        grid.add_row(f"{group}={choice}", first_comment(file) + (" (the default)" if choice == chosen else ""))
    console.print(grid, highlight=False)
    if own and (not common or len(own) > len(common)):
        console.print(f"The keys of one of them: alignrun help {group}={chosen}", highlight=False)
    for section in common:
        content = contents(choice_files(group)[chosen]) if chosen else contents(config_folder() / "config.yaml")
        _show_section(section, content if chosen else content.get(group, {}), console)


def _show_choice(group: str, choice: str, console: Console) -> None:
    files = choice_files(group)
    if choice not in files:
        raise InputError(f"help: {group}={choice} does not exist{nearest(choice, choices(group))}")
    content = contents(files[choice])
    own = [section for section in sections(Config) if section.prefix == f"{group}."]
    typed = [section for section in own if section.choice == f"{group}={schema_of(content)}"]
    common = [section for section in own if not section.choice]
    if not typed and not common:
        console.print(files[choice].read_text(encoding="utf-8"), end="", highlight=False)
        return
    console.print(f"{group}={choice}: {first_comment(files[choice])}", highlight=False)
    for section in (typed or common)[:1]:
        _show_section(section, content, console)


def _show_section(section: Section, content: dict[str, Any], console: Console) -> None:
    """The keys of a section as a file has them."""
    rows = []
    for path, key in flat_keys(section):
        rows.append((path, short(value_in(content, path.removeprefix(section.prefix), key.default)), key))
    table(rows, console)


def table(rows: Iterable[tuple[str, str, Key]], console: Console) -> None:
    """Print keys, each with its value, and with its types, meaning and choices."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold")
    grid.add_column(ratio=1)
    for path, value, key in rows:
        one_of = f" One of {', '.join(key.choices)}." if key.choices else ""
        types = "" if key.choices else f" ({' or '.join(key.type_names)})"
        grid.add_row(f"  {path}={value}", f"{key.meaning}{one_of}{types}")
    console.print(grid, highlight=False)


def short(value: Any) -> str:
    """A value on one line, cut to what a table shows."""
    text = inline_yaml(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
