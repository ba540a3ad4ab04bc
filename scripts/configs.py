"""Complete the YAML files under conf/ and write docs/config.md, both from the dataclasses that type the configuration.

    make configs

A YAML file keeps what its choice sets, above a line that says so; below it every other key is written with its default.
The comment above a key is its meaning, from the docstring of its field; put your own remarks behind a value or in the
header. A new algorithm, preference or data source gets its file here. Experiments hold only what they change.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from alignrun.algorithms.base import discover as algorithms
from alignrun.config import Config
from alignrun.config.keys import Key, keys, summary
from alignrun.config.roots import ROOTS, command_file, command_of
from alignrun.config.yaml_text import explained, inline_yaml, meaning
from alignrun.data.sources import discover as sources
from alignrun.launch.key_table import Section, flat_keys, sections
from alignrun.preferences.base import discover as preferences

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
DEFAULTS = "# Defaults, written by `make configs`:"


def rendered() -> dict[Path, str]:
    """The text of every file that is made from the dataclasses."""
    texts = {
        path: path.read_text("utf-8")
        for path in CONF.rglob("*.yaml")
        if path.parent.name not in ("experiment", "recipe")
    }
    for group, names in (("algo", algorithms()), ("preference", preferences()), ("data", sources())):
        for name in names:
            texts.setdefault(CONF / group / f"{name}.yaml", created(group, name))
    files = {path: completed(path, text) for path, text in sorted(texts.items())}
    return {**files, ROOT / "docs" / "config.md": reference()}


def created(group: str, name: str) -> str:
    """The first lines of a new file."""
    typed = f"defaults:\n  - schema/{name}@_here_\n  - _self_\n\n"
    if group == "data":
        own = sources()[name].config_class is not Config.__dataclass_fields__["data"].type
        return f"#\n{typed if own else ''}name: {name}\nsource: {name}\n"
    return f"#\n{typed}"


def completed(path: Path, text: str) -> str:
    """A file with every key of its section, and with the first line of its module's docstring where it has one."""
    given = yaml.safe_load(text) or {}
    lines = text.splitlines()
    start = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    header, body = lines[:start], lines[start:]
    section, module = _typed(path, given)
    if module is not None:
        header = [f"# {summary(module).removesuffix('.')}"]
    return "\n".join([*header, "", *_section(section, body, ""), ""])


def _typed(path: Path, given: dict[str, Any]) -> tuple[type, Any]:
    """The class that types a file, and the module whose docstring is its header."""
    group, name = path.parent.name, path.stem
    if path.parent == CONF:
        return next(root for command, root in ROOTS.items() if command_file(command) == name), None
    if group == "data":
        source = sources()[given["source"]]
        return source.config_class, _module(source) if name == given["source"] else None
    if group in ("algo", "preference"):
        registered: Any = {"algo": algorithms, "preference": preferences}[group]()
        schema = next(entry for entry in given["defaults"] if entry.startswith("schema/"))
        kind = registered[schema.removeprefix("schema/").removesuffix("@_here_")].config_class
        return kind, _module(registered[name]) if name in registered else None
    return Config.__dataclass_fields__[group].type, None


def _section(section: type, lines: Sequence[str], indent: str) -> Iterator[str]:
    """The lines of a section: what is given, each with its meaning, then every other key with its default."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} if section in ROOTS.values() else ()
    missing = {key.name: key for key in keys(section) if key.name not in {*groups, "selector"}}  # a preference
    for name, comments, block in _blocks(lines, indent):
        key = missing.pop(name, None)
        yield from comments if key is None else meaning(key, indent)
        if key is not None and key.section and len(block) > 1:
            yield block[0]
            yield from _section(key.section, block[1:], f"{indent}  ")
        else:
            yield from block
    if missing:
        yield from [] if indent else [""]
        yield f"{indent}{DEFAULTS}"
        yield from _defaults(missing.values(), indent)


def _blocks(lines: Sequence[str], indent: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(key, the comments above it, its lines) for the keys of one level, up to the defaults."""
    comments: list[str] = []
    block: list[str] = []
    for line in [*lines, f"{indent}{DEFAULTS}"]:
        if not line:
            continue
        if block and not line.startswith(f"{indent} "):
            yield block[0].partition(":")[0].strip(), comments, block
            comments, block = [], []
        if line == f"{indent}{DEFAULTS}":
            return
        if line.startswith(f"{indent}#"):
            comments.append(line)
        else:
            block.append(line)


def _defaults(missing: Iterable[Key], indent: str) -> Iterator[str]:
    missing = list(missing)
    yield from explained(missing, {key.name: plain_default(key) for key in missing}, indent)


def plain_default(key: Key) -> Any:
    """The default of a key; that of a section as nested dictionaries."""
    if not key.section or key.default is None:
        return key.default
    return {inner.name: plain_default(inner) for inner in keys(key.section)}


def reference() -> str:
    """docs/config.md: every key with its type, default, meaning and choices."""
    listed = (section for root in ROOTS.values() for section in sections(root))
    parts = [INTRODUCTION, *(_table(section) for section in listed)]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
# Every key of the configuration

Written by `make configs` from the dataclasses that type the configuration. `alignrun KEY=VALUE` sets a key and
`alignrun GROUP=CHOICE` chooses a group; `alignrun ls` lists the choices, and the file of each under
`conf/` shows its values. `???` must be given, and `null` stands for no value."""


def _table(section: Section) -> str:
    name = section.choice or section.prefix.rstrip(".")
    command = command_of(section.root)
    heading = f"`{name}`" if name else f"`alignrun {command}`" if command else "Every run"
    lines = [f"## {heading}", "", *_about(section), "| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    return "\n".join([*lines, *_rows(section)])


def _about(section: Section) -> list[str]:
    """The line between the heading and the table."""
    group, _, name = section.choice.partition("=")
    if name:
        registered: Any = {"algo": algorithms, "preference": preferences, "data": sources}[group]()[name]
        return [summary(_module(registered)), ""]
    if not section.prefix:
        return [] if section.root is Config else [summary(section.kind), ""]
    choices = ", ".join(f"`{path.stem}`" for path in sorted((CONF / section.prefix.rstrip(".")).glob("*.yaml")))
    return [f"{summary(section.kind)} Choices: {choices}." if choices else summary(section.kind), ""]


def _rows(section: Section) -> Iterator[str]:
    for path, key in flat_keys(section):
        choices = "; ".join(
            f"`{name}`: {text.removesuffix('.')}" if text else f"`{name}`" for name, text in key.choices.items()
        )
        default = inline_yaml(key.default)
        shown = default if "several lines" in default else f"`{default}`"
        types = " or ".join(f"`{name}`" for name in key.type_names)
        cells = [f"`{path}`", types, shown, f"{key.meaning} {choices}".strip()]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _module(registered: Any) -> Any:
    """The module of an algorithm's class, or of the function that makes a preference or reads a source."""
    kind = registered if isinstance(registered, type) else getattr(registered, "build", None) or registered.read
    return sys.modules[kind.__module__]


if __name__ == "__main__":
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
