"""Hydra composes each choice of groups once in a test process; values are overridden anew every time.

A composition takes 0.4 s, nearly all of it before the first value is overridden, and the tests make a thousand. The
choices are the whole key: files and schemas do not change, and a schema that does starts over.
"""

import copy
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.config_store import ConfigStore

create_defaults_list = config_loader_impl.create_defaults_list
compose_defaults = ConfigLoaderImpl._compose_config_from_defaults_list
load_config = ConfigRepository.load_config
store = ConfigStore.store
read: dict[str, Any] = {}
stored: dict[tuple[str | None, str], Any] = {}
listed: dict[str, DefaultsList] = {}
composed: dict[str, Any] = {}


def list_once(repo: Any, config_name: str, overrides_list: list[Any], **given: Any) -> DefaultsList:
    overrides = Overrides(repo, overrides_list)
    chosen = overrides.override_choices, overrides.append_group_defaults, overrides.deletions
    key = repr((places(repo), config_name, chosen, given))
    if key not in listed:
        listed[key] = create_defaults_list(repo, config_name, overrides_list, **given)
    known = listed[key]
    return DefaultsList(known.defaults, known.defaults_tree, overrides.config_overrides, known.overrides)


def compose_once(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
    key = repr((places(repo), [vars(default) for default in defaults]))
    if key not in composed:
        composed[key] = compose_defaults(loader, defaults, repo)
    return copy.deepcopy(composed[key])


def read_once(repo: ConfigRepository, config_path: str) -> Any:
    key = repr((places(repo), config_path))
    if key not in read:
        read[key] = load_config(repo, config_path)
    return copy.deepcopy(read[key])


def store_once(self: ConfigStore, name: str, node: Any, group: str | None = None, **given: Any) -> None:
    if given or stored.get((group, name)) is not node:
        store(self, name, node, group, **given)
        stored[group, name] = node
        read.clear(), listed.clear(), composed.clear()


def places(repo: Any) -> list[tuple[str, str]]:
    return [(source.provider, source.path) for source in repo.get_sources()]


def install() -> None:
    config_loader_impl.create_defaults_list = list_once
    ConfigLoaderImpl._compose_config_from_defaults_list = compose_once
    ConfigRepository.load_config = read_once
    ConfigStore.store = store_once
    ConfigStore.__deepcopy__ = lambda self, _: self  # it is the only one, and Hydra copies all that refers to it
