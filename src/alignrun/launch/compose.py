"""From the command line to a typed Config: Hydra composes, OmegaConf checks, errors become one line."""

import math
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
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignrun.config import (
    Config,
    FromData,
    GenerateConfig,
    PreferenceEvaluationConfig,
    SamplingConfig,
    TournamentConfig,
    TrainConfig,
)
from alignrun.config.keys import keys, summary
from alignrun.config.literal import literal
from alignrun.config.shipped import config_folder
from alignrun.config.yaml_text import explained
from alignrun.data.sources import chosen_source
from alignrun.errors import InputError, one_line
from alignrun.launch.choices import choices, groups
from alignrun.launch.explaining import explain, unknown_key
from alignrun.launch.overrides import readable, section_classes
from alignrun.launch.own_config import blamed, entries, is_run_or_folder
from alignrun.launch.own_files import named
from alignrun.launch.template_files import with_templates
from alignrun.security.files import read_yaml
from alignrun.security.text import visible

VERSION_BASE = "1.3"
OTHERWISE = ": without it, the runs' own is used"
PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
    "optuna": "hydra-optuna-sweeper",
}
"""Hydra's launchers and sweepers that have been tested → their packages."""

Root = TypeVar("Root", Config, TournamentConfig, PreferenceEvaluationConfig, GenerateConfig, SamplingConfig)
Composed = Config | TournamentConfig | PreferenceEvaluationConfig | GenerateConfig


@cache
def register_schemas() -> None:
    """Register the typed dataclasses for the YAML files' `defaults: [schema/NAME@_here_]`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="tournament", node=TournamentConfig)
    store.store(name="preference_evaluation", node=PreferenceEvaluationConfig)
    store.store(name="completions", node=GenerateConfig)
    store.store(name="sampling", node=SamplingConfig)
    for group, classes in section_classes().items():
        for name, kind in classes.items():
            store.store(group=f"{group}/schema", name=name, node=kind)
    for group in groups():
        field = Config.__dataclass_fields__.get(group)
        if field is not None and is_dataclass(field.type):
            store.store(group=f"{group}/schema", name=group, node=field.type)


def recipe_of(overrides: Sequence[str]) -> str | None:
    """The recipe of the model that the overrides choose, unless they choose a recipe, an experiment or own files."""
    given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    model = given.get("model", "")
    chosen = "recipe" in given or "experiment" in given or named().configs
    return model if not chosen and model in choices("recipe") else None


def recipe_note(overrides: Sequence[str]) -> str | None:
    """The line that says which recipe a run gets without having chosen it."""
    recipe = recipe_of(overrides)
    return f"recipe: {recipe}, for this model; recipe=null leaves it out" if recipe else None


def with_recipe(overrides: Sequence[str]) -> list[str]:
    """The overrides with that recipe, as a run from the command line gets it; `recipe=null` chooses none."""
    recipe = recipe_of(overrides)
    rest = [override for override in overrides if override != "recipe=null"]
    return [*rest, f"recipe={recipe}"] if recipe else rest


def compose(overrides: Sequence[str], verb: str = "") -> Config:
    """Compose the configuration of a run from the overrides.

    Raises:
        InputError: an unknown key or choice, a wrong type, or values that a section refuses.
    """
    config = with_templates(_composed("config", Config, readable(overrides, Config, verb)))
    data = config.data
    if data.source == "bundled" and isinstance(config.algo, FromData):
        data = replace(data, name="bundled_pairs", source="bundled_pairs")
    return replace(config, data=data, train=_with_length(config.train, overrides, start=True))


def compose_run(overrides: Sequence[str]) -> Config:
    """`compose` for a single run, with the recipe of its model. Raises InputError for settings of a launcher, which it
    does not have, and as `compose` does."""
    launcher = [override for override in overrides if override.lstrip("+~").startswith(("hydra.", "hydra/"))]
    if launcher:
        raise InputError(f"config: {launcher[0]} is for sweeps (-m): a single run has run.dir")
    return compose(with_recipe(overrides))


def compose_tournament(overrides: Sequence[str]) -> TournamentConfig:
    """Compose the configuration of a tournament from the overrides. Raises as `compose`."""
    overrides = readable(overrides, TournamentConfig, "eval")
    _check_chosen(overrides, OTHERWISE)
    return with_templates(_composed("eval", TournamentConfig, overrides))


def compose_generation(overrides: Sequence[str]) -> GenerateConfig:
    """Compose the configuration of `alignrun generate` from the overrides. Raises as `compose`."""
    overrides = readable(overrides, GenerateConfig, "generate")
    _check_chosen(overrides, OTHERWISE)
    config = with_templates(_composed("generate", GenerateConfig, overrides))
    if config.out is None:
        raise InputError("config: out must be given: name the file to write, as in out=completions.jsonl")
    return config


def compose_sampling(overrides: Sequence[str]) -> SamplingConfig:
    """Compose the configuration of `alignrun chat` from the overrides. Raises as `compose`."""
    return _composed("chat", SamplingConfig, readable(overrides, SamplingConfig, "chat"))


def compose_preference_evaluation(overrides: Sequence[str]) -> PreferenceEvaluationConfig:
    """Compose the configuration of an evaluation of a preference from the overrides. Raises as `compose`."""
    overrides = readable(overrides, PreferenceEvaluationConfig, "eval-preference")
    _check_chosen(overrides)
    for group in ("preference", "data"):
        if not (named().configs or any(override.startswith(f"{group}=") for override in overrides)):
            raise InputError(f"config: {group} is missing: write {group}=NAME, one of `alignrun ls {group}`")
    config = with_templates(_composed("eval_preference", PreferenceEvaluationConfig, overrides))
    if config.preference.name == "none":
        raise InputError("config: preference=none prefers nothing: choose another of `alignrun ls preference`")
    return config


def _check_chosen(overrides: Sequence[str], otherwise: str = "") -> None:
    """Refuse a key of a group of which no choice is given."""
    for group in ("data", "preference"):
        given = [override for override in overrides if override.startswith(f"{group}.")]
        if given and not (named().configs or any(override.startswith(f"{group}=") for override in overrides)):
            raise InputError(f"config: {given[0]} also needs {group}=NAME{otherwise}")
    selector = [override for override in overrides if override.startswith("selector")]
    chosen = named().configs or any(override.startswith("preference@selector=") for override in overrides)
    if selector and not (chosen and selector[0].startswith("selector.")):
        raise InputError(f"config: {selector[0]}: choose what selects with preference@selector=NAME")


def _composed(name: str, kind: type[Root], overrides: Sequence[str]) -> Root:
    register_schemas()
    GlobalHydra.instance().clear()
    own: list[str] = own_entries(kind, overrides)
    try:
        with initialize_config_dir(str(config_folder()), version_base=VERSION_BASE):
            return typed(hydra_compose(name, overrides=[*overrides, *own]), kind)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(blamed(explain(error, kind), overrides)) from error
    except InputError as error:
        raise InputError(blamed(str(error), overrides)) from error


def own_entries(kind: type, overrides: Sequence[str]) -> list[str]:
    """The overrides that add the user's own files. Raises InputError as `entries`."""
    return entries(kind, overrides, lambda file: plain(load(file)))


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
        if added := next(_added(composed, ""), None):
            raise InputError(unknown_key(added, kind))
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
    for section, group in (("algo", "algo"), ("preference", "preference"), ("selector", "preference")):
        if isinstance(getattr(config, section, None), dict):
            raise InputError(
                f"config: {section}: the file of this choice must begin with `defaults: [NAME, _self_]`, with "
                f"the NAME of another one in `alignrun ls {group}`"
            )
    if (data := getattr(config, "data", None)) is not None:
        chosen_source(data)
    return config


def _added(node: DictConfig, prefix: str) -> Iterator[str]:
    """The keys that `+key=` has added to sections whose dataclasses do not have them."""
    section = OmegaConf.get_type(node)
    if section is None or not is_dataclass(section):
        return
    for name in map(str, node):
        if name not in section.__dataclass_fields__:
            yield f"{prefix}{name}"
        elif not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
            yield from _added(node[name], f"{prefix}{name}.")


def _floats(node: Any, prefix: str) -> Iterator[tuple[str, float]]:
    """The floats of a container, with their keys."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield from _floats(value, f"{prefix}{key}.")
    if isinstance(node, float):
        yield prefix.rstrip("."), node


def plain(config: Any) -> dict[str, Any]:
    """A configuration, or a section of one, as nested dictionaries of plain values."""
    container: dict[str, Any] = _plain(asdict(config))
    return container


def _plain(value: Any) -> Any:
    """Convert by hand: OmegaConf would resolve `${…}` in a text."""
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return value.name if isinstance(value, Enum) else value


def dump(config: Composed) -> str:
    """The whole configuration as YAML, with all defaults, and hidden characters as YAML escapes."""
    whole = plain(config)
    text = str(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True))
    return text if visible(text) == text else str(yaml.safe_dump(whole, sort_keys=False))


def dump_explained(config: Composed) -> str:
    """As `dump`, with the meaning of each key as a comment above it."""
    listed = []
    for key in keys(type(config)):
        section = getattr(config, key.name)
        known = replace(key, options=(type(section),), meaning=summary(type(section)))
        listed.append(known if is_dataclass(section) else key)
    return "\n".join([*explained(listed, plain(config)), ""])


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
    config = typed(merged, Config)
    # A file is read only where it is typed: what a stored configuration says is the template itself.
    config = with_templates(config) if any("chat_template" in override for override in overrides) else config
    return replace(config, train=_with_length(config.train, overrides))


def _with_length(train: TrainConfig, overrides: Sequence[str], start: bool = False) -> TrainConfig:
    """Either steps or epochs: of the two, the one that is typed. Raises InputError for both."""
    if train.epochs is None:
        return train
    steps, epochs = (
        any(override.lstrip("+").startswith(f"train.{name}=") for override in overrides) for name in ("steps", "epochs")
    )
    if steps and epochs:
        raise InputError("config: train.steps and train.epochs exclude each other: give one of them")
    if start and not (steps or epochs):
        steps = _length_in_files() == "steps"
    if steps:
        return replace(train, epochs=None)
    return replace(train, steps=0) if epochs or start else train


def _length_in_files() -> str | None:
    """Which of steps and epochs is set by the last of the user's files that sets either; a run's own file has both.

    Raises:
        InputError: a file sets both.
    """
    last = None
    for path in named().configs:
        train = {} if is_run_or_folder(path) else (read_yaml(path) or {}).get("train")
        given = [name for name in ("steps", "epochs") if isinstance(train, dict) and train.get(name) is not None]
        if len(given) > 1:
            raise InputError(f"{path}: train.steps and train.epochs exclude each other: give one of them")
        last = "epochs" if is_run_or_folder(path) else given[0] if given else last
    return last


def _with_values(values: Any, classes: Mapping[str, type]) -> DictConfig:
    """The schema of a run filled with plain values, taken literally; `classes` type the sections of choices."""
    merged = OmegaConf.merge(_schema(tuple(classes.items())), OmegaConf.create(literal(values)))
    assert isinstance(merged, DictConfig)
    return merged


@cache
def _schema(classes: tuple[tuple[str, type], ...]) -> DictConfig:
    """The schema of a run with these classes of sections, to be merged into copies."""
    base: DictConfig = OmegaConf.structured(Config)
    for group, kind in classes:
        base[group] = kind
    return base
