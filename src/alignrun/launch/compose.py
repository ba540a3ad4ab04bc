"""From the command line to a typed Config: Hydra composes, OmegaConf checks, errors become one line."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from alignrun.config import Config, TournamentConfig
from alignrun.config.shipped import config_folder as config_folder
from alignrun.data.sources import chosen_source
from alignrun.errors import InputError, one_line
from alignrun.launch.overrides import readable, section_classes, unreadable
from alignrun.launch.suggestions import alias, note
from alignrun.security.files import read_yaml
from alignrun.security.text import visible

VERSION_BASE = "1.3"
PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "optuna": "hydra-optuna-sweeper",
}
"""Hydra's launchers and sweepers that have been tested → their packages."""

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

NAMES_OR_PATHS = ("model.path", "data.path", "data.eval_path", "reference.path", "preference.path", "algo.opponent")
"""Keys whose value is a path or a name on the hub."""
GAMES = ("preference.game", "data.game")
"""Keys whose value is a file or the name of a game."""
PATHS = ("preference.cache", "generation.server_adapter_folder", "run.dir")
"""Keys whose value is always a path, even if it does not exist yet."""

Root = TypeVar("Root", Config, TournamentConfig)


@cache
def register_schemas() -> None:
    """Register the typed dataclasses for the YAML files' `defaults: [schema/NAME@_here_]`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="tournament", node=TournamentConfig)
    for group, classes in section_classes().items():
        for name, kind in classes.items():
            store.store(group=f"{group}/schema", name=name, node=kind)


def compose(overrides: Sequence[str], verb: str = "") -> Config:
    """Compose the configuration of a run from the overrides.

    Raises:
        InputError: an unknown key or choice, a wrong type, or values that a section refuses.
    """
    return _composed("config", Config, readable(overrides, Config, verb))


def compose_tournament(overrides: Sequence[str]) -> TournamentConfig:
    """Compose the configuration of a tournament from the overrides. Raises as `compose`."""
    overrides = readable(overrides, TournamentConfig, "eval")
    for group in ("data", "preference"):
        given = [override for override in overrides if override.startswith(f"{group}.")]
        if given and not any(override.startswith(f"{group}=") for override in overrides):
            raise InputError(f"config: {given[0]} also needs {group}=NAME: without it, the runs' own is used")
    return _composed("eval", TournamentConfig, overrides)


def _composed(name: str, kind: type[Root], overrides: Sequence[str]) -> Root:
    register_schemas()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base=VERSION_BASE):
            return typed(hydra_compose(name, overrides=list(overrides)), kind)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error, kind)) from error


def compose_hydra(overrides: Sequence[str]) -> None:
    """Check settings of Hydra itself, its launcher and its sweeper. Raises InputError as `compose`, and if a plugin is
    not installed."""
    register_schemas()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base=VERSION_BASE):
            hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
    except MissingConfigException as error:
        name = str(error.missing_cfg_file).rpartition("/")[2]
        if name not in PLUGINS:
            chosen = str(error.missing_cfg_file).replace(f"/{name}", f"={name}")
            raise InputError(f"config: {chosen} does not exist: choose from basic, {', '.join(PLUGINS)}") from error
        raise InputError(f"config: {error.missing_cfg_file} is not installed: pip install {PLUGINS[name]}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error)) from error


def typed(composed: DictConfig, kind: type[Root]) -> Root:
    """A composed configuration as frozen dataclasses.

    Raises:
        InputError: a value is missing or refused.
    """
    try:
        missing = OmegaConf.missing_keys(composed)
        if missing:
            raise InputError(f"config: {', '.join(sorted(missing))} must be given")
        # Interpolations are resolved only once: an escaped value has become plain text.
        for key, number in _floats(OmegaConf.to_container(composed, resolve=True), ""):
            # An architecture may contain infinities that transformers writes.
            if not math.isfinite(number) and not key.startswith("model.architecture."):
                raise InputError(f"config: {key} must be a finite number, not {number}")
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise InputError(explain(error, kind)) from error
    except (AttributeError, TypeError) as error:  # `+key=` adds fields that no dataclass has
        raise InputError(f"config: {one_line(error)}: only keys of the schema can be set") from error
    assert isinstance(config, kind)
    if config.data is not None:
        chosen_source(config.data)
    return config


def _floats(node: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """The floats of a container, with their keys."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield from _floats(value, f"{prefix}{key}.")
    if isinstance(node, float):
        yield prefix.rstrip("."), node


def plain(config: Config | TournamentConfig) -> dict[str, Any]:
    """The whole configuration as nested dictionaries of plain values."""
    container: dict[str, Any] = _plain(asdict(config))
    return container


def _plain(value: Any) -> Any:
    """Convert by hand: OmegaConf would resolve `${…}` in a text."""
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return value.name if isinstance(value, Enum) else value


def dump(config: Config | TournamentConfig) -> str:
    """The whole configuration as YAML, with all defaults, and hidden characters as YAML escapes."""
    whole = plain(config)
    text = str(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))
    return text if visible(text) == text else str(yaml.safe_dump(whole, sort_keys=False))


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration that `dump` wrote, with values changed by `key=value`.

    `${…}` is plain text in the file, and inserts another value in an override.

    Raises:
        InputError: the file is missing, not YAML, or not a configuration of this version, or an override is invalid.
    """
    for group, _, choice in (override.partition("=") for override in overrides):
        if group in groups():
            raise InputError(
                f"config: {group}={choice}: the {group} of a started run is fixed: change single values of it, "
                f"{group}.KEY=…, or start another run"
            )
    try:
        stored = read_yaml(path)
        known, by = section_classes(), {"algo": "name", "preference": "name", "data": "source"}
        classes = {group: known[group][stored[group][key]] for group, key in by.items()}
    except (LookupError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a configuration ({one_line(error, 160)})") from error
    try:
        whole = _with_values(stored, classes)
        config = typed(whole, Config)
    except (OmegaConfBaseException, TypeError) as error:
        raise InputError(f"{path}: {explain(error)}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return changed(config, overrides) if overrides else config


def changed(config: Config, overrides: Sequence[str]) -> Config:
    """Change values of a configuration by `key=value`, and whole sections by `group=choice`.

    Raises:
        InputError: an unknown key or choice, a wrong type, or values that a section refuses.
    """
    chosen = [override.partition("=")[0] for override in overrides if override.partition("=")[0] in groups()]
    for group in chosen:
        section = compose([override for override in overrides if override.startswith((f"{group}=", f"{group}."))])
        config = replace(config, **{group: getattr(section, group)})
    rest = [override for override in overrides if override.partition("=")[0].partition(".")[0] not in chosen]
    try:
        whole = _with_values(plain(config), {group: type(getattr(config, group)) for group in section_classes()})
        merged = OmegaConf.merge(whole, OmegaConf.from_dotlist(list(rest)))
    except OmegaConfBaseException as error:
        raise InputError(explain(error)) from error
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise InputError(
            f"config: cannot read the overrides {' '.join(rest)} ({one_line(error, 120)}): write key=value"
        ) from error
    assert isinstance(merged, DictConfig)
    return typed(merged, Config)


def _with_values(values: Any, classes: Mapping[str, type]) -> DictConfig:
    """The schema of a run filled with plain values, taken literally; `classes` type the sections of choices."""
    merged = OmegaConf.merge(_schema(tuple(classes.items())), OmegaConf.create(_literal(values)))
    assert isinstance(merged, DictConfig)
    return merged


@cache
def _schema(classes: tuple[tuple[str, type], ...]) -> DictConfig:
    """The schema of a run with these classes of sections, to be merged into copies."""
    base: DictConfig = OmegaConf.structured(Config)
    for group, kind in classes:
        base[group] = kind
    return base


def _literal(value: Any) -> Any:
    """Escape `${` and the backslashes before it, so that OmegaConf reads plain text."""
    if isinstance(value, dict):
        return {key: _literal(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_literal(child) for child in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def anchored(config: Config) -> Config:
    """The configuration with all local paths made absolute, so that it is valid in any folder."""

    def placed(key: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        path = Path(value).expanduser()
        local = path.suffix == ".json" if key in GAMES else key in PATHS or path.exists()
        return str(path.absolute()) if local else value

    for key in (*NAMES_OR_PATHS, *GAMES, *PATHS):
        group, _, name = key.partition(".")
        section = getattr(config, group)
        if hasattr(section, name):
            config = replace(config, **{group: replace(section, **{name: placed(key, getattr(section, name))})})
    architecture = {
        name: placed(GAMES[0], value) if name == "game" else value for name, value in config.model.architecture.items()
    }
    return replace(config, model=replace(config.model, architecture=architecture))


def choices(group: str) -> list[str]:
    """The choices of a group, sorted."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def groups() -> list[str]:
    """The configuration groups, sorted."""
    return sorted(path.name for path in config_folder().iterdir() if path.is_dir())


def explain(error: Exception, kind: type = Config) -> str:
    """One line for an error of Hydra or OmegaConf: what is wrong, and the closest valid name."""
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) and error.__cause__ else error
    if isinstance(error, OverrideParseException):
        return unreadable(str(error.override))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"config: {group}={name} does not exist{_nearest(name, choices(group))}"
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        key = str(cause.full_key or cause.key)
        if kind is not Config and key in _fields(Config):
            return f"config: {key} is a section of runs; a tournament has its own keys, such as top_p or temperature"
        owners = _owners(key)
        if owners:
            return f"config: {key} is not valid here: it belongs to {', '.join(owners)}"
        return f"config: unknown key {key}{_nearest(key, known_keys(kind))}"
    lines = str(cause).splitlines() or [type(cause).__name__]
    # Hydra names the file in the first line, and the problem in the second.
    first = " ".join(lines[:2]) if lines[0].endswith("raised while composing config:") else lines[0]
    full_key = getattr(cause, "full_key", None)
    where = f"{full_key}: " if full_key and str(full_key) not in first else ""
    if "Could not override" in first and "No match in the defaults list" in str(cause):
        name = first.split("'")[1]
        return f"config: unknown group {name}{_nearest(name, known_keys(kind), _groups_of(kind))}"
    hint = next((f": {hint}" for words, hint in HINTS.items() if words in first), "")
    return f"config: {where}{one_line(Exception(first))}{hint}"


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
    return list(config_class.__dataclass_fields__)  # type: ignore[attr-defined]


def _flatten(node: Any, prefix: str) -> list[str]:
    keys = []
    for key in node:
        keys.append(f"{prefix}{key}")
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            keys += _flatten(node[key], f"{prefix}{key}.")
    return keys


def _nearest(name: str, candidates: Sequence[str], offered: Sequence[str] = ()) -> str:
    """A suggestion: a candidate known by another trainer's name, or the closest of the `offered` (by default all of
    them): first within the given section, then by the last part, then by the whole name."""
    known = alias(name)
    if known and known.rpartition(" ")[2] in candidates:
        return f": did you mean {known}{'=…' if ' ' in known else ''}?{note(name)}"
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
    return next((names[found] for found in difflib.get_close_matches(text, names, 1, cutoff)), None)
