"""Files of `--config` as entries of Hydra's defaults list."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignrun.config import Config
from alignrun.config.literal import literal
from alignrun.config.roots import ROOTS
from alignrun.config.shipped import config_folder
from alignrun.errors import InputError, one_line, suggestion
from alignrun.launch.choices import choice_files, choices, groups
from alignrun.launch.overrides import section_classes
from alignrun.launch.own_files import file_of, named
from alignrun.run.directory import RunDirectory
from alignrun.run.trust import check_own, read_signature

GROUP = "own_"
"""The groups of these entries in Hydra, one for each file."""
SELF = "_self_"
TYPED = {"algo": "name", "preference": "name", "data": "source"}
"""Group → the key that says which class types a section."""
NAMED = ("algo", "preference", "data", "model", "adapter", "reference")
"""Groups whose sections hold the name of their choice."""

Content = dict[str, Any]
Stored = Callable[[Path], Content]
"""Loads the configuration of a run as plain values."""


def entries(kind: type, overrides: Sequence[str], stored: Stored) -> list[str]:
    """Overrides by which Hydra puts the user's files on top of the defaults; registers the files.

    Args:
        kind: one of `ROOTS`.
        overrides: of the command line, in Hydra's grammar.
        stored: loads the configuration of a run.

    Raises:
        InputError: a file cannot be read, or is not a configuration of this kind.
    """
    own = named()
    found = []
    if own.folders:
        places = ",".join(
            "'file://" + re.sub(r"(['\\])", r"\\\1", str(folder.absolute())) + "'" for folder in own.folders
        )
        found.append(f"hydra.searchpath=[{places}]")
    if own.verb in ROOTS and ROOTS[own.verb] is not kind:
        return found
    for number, file in enumerate(own.configs):
        node = _run_node(file_of(file), overrides, stored) if is_run_or_folder(file) else _node(file, overrides, kind)
        ConfigStore.instance().store(group=f"{GROUP}{number}", name="file", node=node)
        found.append(f"+{GROUP}{number}@_global_=file")
    return found


def adds_own(override: str) -> bool:
    """Whether an override is one that `entries` wrote, rather than the user."""
    return override.startswith((f"+{GROUP}", "hydra.searchpath="))


def is_run_or_folder(path: Path) -> bool:
    """Whether a path is a folder, or the config.yaml in the folder of a run."""
    run = RunDirectory(path.parent)
    kept = (run.environment_file, run.overrides_file, run.signature_file, run.metrics_file, run.checkpoints)
    return path.is_dir() or (path.name == run.config_file.name and any(file.exists() for file in kept))


def _run_node(file: Path, overrides: Sequence[str], stored: Stored) -> Content:
    """A run as the start of another. Raises InputError if it executes code or contacts a server, and is not trusted."""
    values = stored(file)
    run = RunDirectory(file.parent)
    check_own(values, read_signature(run.signature_file), str(run.path), overrides=overrides)
    del values["run"]  # another run has another folder
    return _with_defaults(file, values, {}, overrides, Config)


def _node(file: Path, overrides: Sequence[str], kind: type) -> Content:
    content, chosen = read(file, kind)
    return _with_defaults(file, content, chosen, overrides, kind)


def _with_defaults(
    file: Path, content: Content, chosen: Mapping[str, str], overrides: Sequence[str], kind: type
) -> Content:
    """The content of a file with the defaults list by which Hydra reads it."""
    given = {override.partition("=")[0].lstrip("+~") for override in overrides}
    content, defaults, whole = dict(content), dict(chosen), is_whole(content)
    if whole and "experiment" in given:
        raise InputError(
            f"{file} is a whole configuration, of which an experiment changes nothing: leave one of them out"
        )
    for group in groups_of(kind):
        section = content.get(group)
        if not isinstance(section, dict) or group in chosen:
            continue
        complete = _complete(group, section)
        if complete and group in given:
            del content[group]  # the command line chooses another
        elif complete:
            defaults[group] = f"schema/{_schema(group, section)}"
        elif group in NAMED and section.get("name") in choices(group):
            defaults[group] = section["name"]
            content[group] = {key: value for key, value in section.items() if key != "name"}
        elif kind is not Config and group not in given and group != "tracker":
            raise InputError(f"{file}: {group} has no choice: name one under `defaults:`, as - {group}: NAME")
    listed = [{f"override /{group}": choice} for group, choice in defaults.items()]
    return {"defaults": [*listed, SELF], **(literal(content) if whole else content)}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether a file has every section of a run, as a run's config.yaml and the output of `alignrun config` do."""
    return "defaults" not in content and all(
        isinstance(content.get(field.name), dict) for field in fields(Config) if field.name in groups()
    )


def _complete(group: str, section: Mapping[str, Any]) -> bool:
    kind = _class(group, section)
    return kind is not None and {field.name for field in fields(kind)} <= section.keys()


def _class(group: str, section: Mapping[str, Any]) -> Any:
    if group in TYPED:
        return section_classes()[group].get(str(section.get(TYPED[group])))
    kind: Any = Config.__dataclass_fields__[group].type
    return kind if is_dataclass(kind) else None


def _schema(group: str, section: Mapping[str, Any]) -> str:
    return str(section[TYPED[group]]) if group in TYPED else group


def groups_of(kind: type) -> list[str]:
    """The groups of a run or a tournament that its sections come from."""
    return [name for name in groups() if name in kind.__dataclass_fields__]  # type: ignore[attr-defined]


def read(file: Path, kind: type, above: tuple[Path, ...] = ()) -> tuple[Content, dict[str, str]]:
    """The content of a hand-written file and the choices of its defaults list, with those of files it includes.

    Raises:
        InputError: it is not YAML with keys, or its defaults list names what does not exist.
    """
    content = parsed(file)
    content.pop("hydra", None)
    chosen: dict[str, str] = {}
    own, layers = content, []
    listed = content.pop("defaults", None) or []
    if not isinstance(listed, list):
        raise InputError(f"{file}: defaults is a list: write - GROUP: CHOICE below it")
    for entry in listed if SELF in listed else [*listed, SELF]:
        if entry == SELF:
            layers.append(own)
        elif isinstance(entry, str):
            inner, choice = read(_included(file, entry, above), kind, (*above, file))
            layers.append(inner)
            chosen |= choice
        else:
            chosen |= dict(_choices(file, entry, kind))
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(layer) for layer in layers)), resolve=False)
    except OmegaConfBaseException as error:
        raise InputError(f"{file} cannot be merged ({one_line(error, 160)})") from error
    assert isinstance(merged, dict)
    return merged, chosen  # type: ignore[return-value]


def _included(file: Path, name: str, above: tuple[Path, ...]) -> Path:
    other = file.parent / f"{name.removesuffix('.yaml')}.yaml"
    if not other.is_file():
        raise InputError(f"{file}: defaults: {name} is not a file next to it: write GROUP: CHOICE to choose one")
    if other in (*above, file):
        raise InputError(f"{file}: defaults: {name} includes itself")
    return other


def _choices(file: Path, entry: Any, kind: type) -> Iterator[tuple[str, str]]:
    for key, choice in entry.items() if isinstance(entry, dict) else [(str(entry), None)]:
        group = str(key).removeprefix("override ").strip().lstrip("/")
        known = [*groups_of(kind), *(["experiment", "recipe"] if kind is Config else [])]
        if group.startswith("hydra"):
            raise InputError(f"{file}: defaults: {group} is for the command line of a sweep: write {group}=… there")
        if group not in known:
            advice = suggestion(group, known)
            raise InputError(f"{file}: defaults: there is no group {group}{advice}")
        if not isinstance(choice, str):
            raise InputError(f"{file}: defaults: write {group}: NAME, one of `alignrun ls {group}`")
        yield group, choice


def searchpath(file: Path) -> list[str]:
    """The folders that `hydra.searchpath` in a file names; raises InputError for other settings of Hydra."""
    settings = {} if is_run_or_folder(file) else parsed(file).get("hydra") or {}
    others = sorted(set(settings) - {"searchpath"}) if isinstance(settings, dict) else ["…"]
    if others:
        raise InputError(
            f"{file}: hydra.{others[0]} is for the command line of a sweep: write hydra.{others[0]}=… there"
        )
    listed = settings.get("searchpath") or []
    return [str(entry) for entry in (listed if isinstance(listed, list) else [listed])]


def parsed(file: Path) -> Content:
    """A YAML file as Hydra reads it, with interpolations unresolved. Raises InputError if it is not one with keys."""
    try:
        loaded = OmegaConf.load(file)
        content = OmegaConf.to_container(loaded, resolve=False)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error, 160)})") from error
    if not isinstance(loaded, DictConfig) or not isinstance(content, dict):
        raise InputError(f"{file} holds no keys: write KEY: VALUE")
    return {str(key): value for key, value in content.items()}


def blamed(message: str, overrides: Sequence[str]) -> str:
    """An error of the configuration, with the file or the experiment that gives the key it names."""
    found = re.match(r"config: (?:unknown (?:key|group) )?([\w.]+)", message)
    given = {key.lstrip("+~"): choice for key, _, choice in (override.partition("=") for override in overrides)}
    if found is None or (key := found[1].rstrip(".")) in given:
        return message
    problem = message.removeprefix("config: ")
    for file in reversed(named().configs):  # the last one takes precedence
        if not is_run_or_folder(file) and _gives(file, key):
            return f"{file}: {problem}"
    experiment = given.get("experiment", "")
    file_of_it = choice_files("experiment").get(experiment)
    if file_of_it is None or not _gives(file_of_it, key):
        return message
    if not file_of_it.is_relative_to(config_folder()):
        return f"{file_of_it}: {problem}"
    # Another value can be typed, but a key cannot be taken back.
    copied = (
        f"; `alignrun cp experiment/{experiment} FILE.yaml` copies it to edit" if "not valid here" in problem else ""
    )
    return f"experiment={experiment}: {problem}{copied}"


def _gives(file: Path, key: str) -> bool:
    node: Any = parsed(file)
    for name in key.split("."):
        node = node.get(name, None) if isinstance(node, dict) else None
    return node is not None
