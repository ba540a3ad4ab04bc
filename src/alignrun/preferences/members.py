"""The sections of a panel's members: each is typed as its preference, and its errors name the member."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from alignrun.config.literal import literal
from alignrun.config.schema import require
from alignrun.config.shipped import config_folder
from alignrun.discovery import config_classes
from alignrun.errors import AlignrunError, InputError, one_line, suggestion

EXAMPLE = "preference.members='{helpful: {name: reward_model, path: …}, brief: {name: measure, measure: brevity}}'"


def typed_members(members: Mapping[str, Any]) -> dict[str, Any]:
    """Every member as the dataclass of its preference, from plain values; typed ones are unchanged.

    Raises:
        InputError: a member has no name, an unknown one, or values that its preference refuses.
    """
    return {str(member): _typed(str(member), given) for member, given in members.items()}


def _typed(member: str, given: Any) -> Any:
    key = f"preference.members.{member}"
    given = {"name": given} if isinstance(given, str) else given
    require(re.fullmatch(r"[\w-]+", member) is not None, key, "must be named with letters, digits, _ and -")
    if is_dataclass(given):
        return given
    named = isinstance(given, Mapping) and isinstance(given.get("name"), str)
    require(named, key, "must be a section with the name of a preference, as in {name: reward_model, path: …}")
    classes, preset = config_classes("preference"), {}
    name, own = given["name"], {key: value for key, value in given.items() if key != "name"}
    files = {path.stem: path for path in (config_folder() / "preference").glob("*.yaml")}
    if name not in classes and name in files:
        preset = yaml.safe_load(files[name].read_text(encoding="utf-8"))
        name = next(one for one in preset.pop("defaults") if one != "_self_").removeprefix("schema/").partition("@")[0]
    known = sorted({*classes, *files} - {"none"})
    require(name in classes and name != "none", f"{key}.name", f"has no {given['name']}{suggestion(name, known)}")
    with named_errors(member):
        try:
            section = OmegaConf.merge(OmegaConf.structured(classes[name]), literal(preset), literal(own))
            if missing := sorted(OmegaConf.missing_keys(section)):
                raise InputError(f"config: preference.{missing[0]} must be given")
            return OmegaConf.to_object(section)
        except (ConfigAttributeError, ConfigKeyError) as error:
            wrong = str(error.full_key or error.key)
            place, _, last = wrong.rpartition(".")
            whole = OmegaConf.structured(classes[name])
            names = list(OmegaConf.select(whole, place) if place else whole)
            raise InputError(f"config: preference.{wrong} is unknown{suggestion(last, names)}") from error
        except OmegaConfBaseException as error:
            first = Exception(str(error).splitlines()[0])
            raise InputError(f"config: preference.{error.full_key}: {one_line(first)}") from error


@contextmanager
def named_errors(member: str) -> Iterator[None]:
    """Context in which errors about `preference.KEY` name `preference.members.MEMBER.KEY`."""
    try:
        yield
    except AlignrunError as error:
        place, text = f"preference.members.{member}", str(error)
        renamed = re.sub(r"(?<![\w./-])preference(?=\.[a-z_]+\b)", place, text)
        if renamed == text:
            before = "config: " * text.startswith("config: ")
            renamed = f"{before}{place}: {text.removeprefix(before)}"
        error.args = (renamed,)
        raise
