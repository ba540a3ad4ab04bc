"""One line for an error of Hydra or OmegaConf: what is wrong, where, and the closest valid name."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from alignrun.config import Config, TournamentConfig
from alignrun.config.roots import command_of
from alignrun.errors import one_line
from alignrun.launch.choices import choices, groups
from alignrun.launch.overrides import section_classes, unreadable
from alignrun.launch.suggestions import alias

REFERENCE = r"${KEY} inserts the value of another key, and \${ is literal: KEY='\${…}'"
HINTS = {
    "not a valid bool": "use true or false",
    "could not be converted to Integer": "give a whole number",
    "could not be converted to Float": "give a number",
    "is not a ListConfig": "write it as a list, KEY='[a,b]'",
    "Interpolation": REFERENCE,
    "interpolation": REFERENCE,
    "token recognition error": REFERENCE,
    "no viable alternative": REFERENCE,
}
"""Words of an OmegaConf error → how to fix it."""


def explain(error: Exception, kind: type = Config) -> str:
    """One line for an error of Hydra or OmegaConf: what is wrong, and the closest valid name."""
    inner = (error.__cause__ or error.__context__) if isinstance(error, ConfigCompositionException) else None
    cause = inner or error
    if isinstance(error, OverrideParseException):
        return unreadable(str(error.override))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        suggestion = nearest(name, choices(group)).replace("`alignrun ls`", f"`alignrun ls {group}`")
        return f"config: {group}={name} does not exist{suggestion}"
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return unknown_key(str(cause.full_key or cause.key), kind)
    lines = str(cause).splitlines() or [type(cause).__name__]
    # Hydra names the file in the first line, and the problem in the second.
    first = " ".join(lines[:2]) if lines[0].endswith("raised while composing config:") else lines[0]
    full_key = getattr(cause, "full_key", None)
    where = f"{full_key}: " if full_key and str(full_key) not in first else ""
    if "Could not override" in first and "No match in the defaults list" in str(cause):
        name = first.split("'")[1]
        return f"config: unknown group {name}{nearest(name, known_keys(kind), _groups_of(kind))}"
    hint = next((f": {hint}" for words, hint in HINTS.items() if words in first), "")
    return f"config: {where}{one_line(Exception(first))}{hint}"


def unknown_key(key: str, kind: type) -> str:
    """One line for a key that its section does not have."""
    if kind is not Config and key in _fields(Config):
        example = "top_p or temperature" if "top_p" in _fields(kind) else "rows or confidence"
        what = "a tournament" if kind is TournamentConfig else command_of(kind)
        return f"config: {key} is a section of runs; {what} has its own keys, such as {example}"
    if owners := _owners(key):
        return f"config: {key} is not valid here: it belongs to {', '.join(owners)}"
    return f"config: unknown key {key}{nearest(key, known_keys(kind))}"


def known_keys(kind: type = Config) -> list[str]:
    """All keys of a run or a tournament, over all algorithms and preferences."""
    keys = _flatten(OmegaConf.structured(kind), "")
    sections = {name: part.type for name, part in Config.__dataclass_fields__.items() if name in _fields(kind)}
    for name, section in sections.items():
        if is_dataclass(section):
            keys += _flatten(OmegaConf.structured(section), f"{name}.")
    keys += [
        f"{name}.{field}"
        for name, classes in section_classes().items()
        if name in sections
        for own in classes.values()
        for field in _fields(own)
    ]
    return sorted({*keys, *_groups_of(kind)})


def _groups_of(kind: type) -> list[str]:
    """The configuration groups of a run or a tournament."""
    return groups() if kind is Config else [name for name in groups() if name in _fields(kind)]


def _owners(key: str) -> list[str]:
    """The other choices that have a key."""
    group, _, field = key.partition(".")
    classes = section_classes().get(group, {})
    return sorted(f"{group}={name}" for name, config_class in classes.items() if field in _fields(config_class))


def _fields(config_class: type) -> list[str]:
    return [field.name for field in fields(config_class)]


def _flatten(node: Any, prefix: str) -> list[str]:
    keys = []
    for key in node:
        keys.append(f"{prefix}{key}")
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            keys += _flatten(node[key], f"{prefix}{key}.")
    return keys


def nearest(name: str, candidates: Sequence[str], offered: Sequence[str] = ()) -> str:
    """A suggestion: a candidate known by another trainer's name, or the closest of the `offered` (by default all of
    them): first within the given section, then by the last part, then by the whole name."""
    known = alias(name)
    if known and known.rpartition(" ")[2] in candidates:
        return f": did you mean {known}{'=…' if ' ' in known else ''}?"
    candidates = offered or candidates
    section, _, field = name.rpartition(".")
    own = {key.rpartition(".")[2]: key for key in candidates if section and key.rpartition(".")[0] == section}
    last = {key.rpartition(".")[2]: key for key in reversed(candidates)}
    same = [key for key in candidates if key.rpartition(".")[2] == field]
    whole = {} if own else {key: key for key in candidates}  # a long section name makes all of its keys similar
    match = _near(field, own, 0.75) or (" or ".join(same) if len(same) <= 4 else None)
    if match := match or _near(name, whole, 0.75) or _near(field, last, 0.7):
        return f": did you mean {match}?"
    if 0 < len(own) <= 16:
        return f": {section} has {', '.join(own)}"
    return f": choose from {', '.join(candidates)}" if candidates and len(candidates) <= 12 else ": see `alignrun ls`"


def _near(text: str, names: Mapping[str, str], cutoff: float) -> str | None:
    """The value of the closest name; None if none is close."""
    # One wrong letter of three is a third of a name.
    cutoff = min(cutoff, 0.6) if len(text) <= 4 else cutoff
    return next((names[found] for found in difflib.get_close_matches(text, names, 1, cutoff)), None)
