"""Translate overrides as people type them into Hydra's grammar: texts literally, and lists where keys are lists.

In that grammar commas, brackets, quotes and equals signs are special, `007` is 7 and `1_0` is 10. A text key takes the
typed value literally, except for `null`, quoted or backslash-escaped parts, and `${…}`, the value of another key.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from alignrun.data import sources
from alignrun.discovery import PACKAGES, config_classes
from alignrun.errors import InputError
from alignrun.launch.suggestions import stray


def readable(overrides: Sequence[str], kind: type, verb: str = "") -> list[str]:
    """The overrides of a run or a tournament in Hydra's grammar.

    Args:
        overrides: as typed.
        kind: the configuration they override, one of `ROOTS`.
        verb: the command that takes them.

    Raises:
        InputError: one is not key=value, or has several values for a key that takes one.
    """
    if problem := stray(overrides, verb):
        raise InputError(problem)
    types = key_types(kind)
    for override in overrides:
        key, _, value = override.partition("=")
        if (key in get_type_hints(kind) and key not in types) or key in ("experiment", "recipe"):
            _check_section(key, value)
    return [
        with_new_key(_readable(override, types.get(override.partition("=")[0].lstrip("+"), ())), kind)
        for override in overrides
    ]


def _check_section(key: str, value: str) -> None:
    """Refuse a value of a section that is not the name of a choice; for some of these Hydra raises ValueError."""
    if key == "run" and value.startswith("["):
        raise InputError(f"config: run={value}: did you mean runs={shlex.quote(value)}?")
    if key in ("train", "evaluation", "run", "sweep") and not value.startswith("{"):
        raise InputError(f"config: {key} is a section of keys: write {key}.KEY=VALUE")
    if not value or value in ("null", "true", "false") or re.fullmatch(r"[-+.\d[{].*", value):
        raise InputError(f"config: {key}={value} is not a choice: write {key}=NAME, one of `alignrun ls {key}`")


def _readable(override: str, types: Sequence[Any]) -> str:
    key, _, value = override.partition("=")
    if not key:
        raise InputError(unreadable(override))
    if key == "runs" and is_pattern(value) and not value.startswith("["):
        return f"{key}=[{quoted(value)}]"
    text = bool(types) and all(kind is str for kind in types)
    listed = bool(types) and all(get_origin(kind) is list for kind in types)
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        if text:
            return f"{key}={quoted(value)}"
        if listed and (items := re.fullmatch(r"\[([^\[\]{}'\"]*)\]", value)):
            return f"{key}=[{','.join(quoted(item.strip()) for item in items[1].split(','))}]"
        if listed:
            raise InputError(f"config: cannot read {override!r}: {key} is a list: write {key}='[A,B]'") from error
        if types:
            raise InputError(f"config: cannot read the override {override!r}: write {key}=VALUE") from error
        raise InputError(unreadable(override)) from error
    if parsed.is_sweep_override():
        if text:
            return f"{key}={quoted(value)}"
        if listed:
            raise InputError(f"config: {key} is a list: write {key}={shlex.quote(f'[{value}]')}")
        raise InputError(
            f"config: {override} has several values: a sweep over them is `alignrun -m {shlex.quote(override)} …`, and "
            "a single run takes one"
        )
    found = parsed.value()
    if listed and isinstance(found, str) and "${" not in found:
        raise InputError(f"config: {key} is a list: write {key}={shlex.quote('[' + (value or 'A,B') + ']')}")
    if text and found is not None and not isinstance(found, str | QuotedString):
        return f"{key}={quoted(value)}"
    return override


def with_new_key(override: str, kind: type) -> str:
    """An override with `++` if it adds a key to a dictionary whose keys are the user's: otherwise Hydra refuses it."""
    key, _, value = override.partition("=")
    free = [name for name, hints in key_types(kind).items() if any(get_origin(hint) is dict for hint in hints)]
    new = any(key.startswith(f"{name}.") or (key == name and value.startswith("{")) for name in free)
    return f"++{override}" if new else override


def is_pattern(path: str) -> bool:
    """Whether a path has wildcards as in the shell: `*`, `?` or `[…]`."""
    return re.search(r"[*?]|\[[^\]]", path) is not None


def quoted(value: object) -> str:
    """Quote a value so that Hydra's grammar takes it literally: only quotes and backslashes before them are escaped."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(value))
    return f"'{escaped}'"


def unreadable(override: str) -> str:
    """The error line for an override that Hydra's grammar cannot parse."""
    key, given, value = override.partition("=")
    if not given or not re.fullmatch(r"[+~]{0,2}[\w./@-]+", key):
        return f"config: cannot read the override {override!r}: write key=value"
    if re.search(r"\s[\w.]+=", value):
        return f"config: {override!r} is one argument with several overrides: leave out the quotes around them"
    typed = f"{key}={quoted(value)}"
    typed = shlex.quote(typed) if set(typed) & set('"$`\\!') else f'"{typed}"'
    return f"config: cannot read the override {override!r}: to take its special characters literally, write {typed}"


@cache
def key_types(kind: type) -> Mapping[str, tuple[Any, ...]]:
    """The types that a key may have, over all algorithms and preferences, except None."""
    found: dict[str, tuple[Any, ...]] = {}
    for key, hint in _walk(kind, ""):
        found[key] = (*found.get(key, ()), hint)
    return found


def section_classes() -> dict[str, dict[str, type]]:
    """Group → choice → dataclass, for the groups whose choices have their own types."""
    typed = {group: config_classes(group) for group in PACKAGES}
    return {**typed, "data": {name: source.config_class for name, source in sources.discover().items()}}


def _walk(section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    classes = {} if prefix else section_classes()
    classes |= {"selector": classes["preference"]} if classes else {}
    for name, hint in get_type_hints(section).items():
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        own = classes.get(name, {}).values()
        for option in dict.fromkeys([*options, *own]):
            if is_dataclass(option):
                yield from _walk(option, f"{prefix}{name}.")  # type: ignore[arg-type]
            elif option is not NoneType and not (option is Any and own):
                yield f"{prefix}{name}", option
