"""Every key of a run or a tournament, by section: what docs/config.md and `alignrun help` show."""

from collections.abc import Iterator
from dataclasses import dataclass

from alignrun.config import Config
from alignrun.config.keys import Key, keys
from alignrun.launch.overrides import section_classes


@dataclass(frozen=True, slots=True)
class Section:
    """The keys of one class."""

    root: type
    """Config, or what another command takes."""
    prefix: str
    """What precedes the keys, such as `algo.`; empty for those of no group."""
    choice: str
    """The one choice that has these keys, such as `algo=dpo`; empty if all choices of the group do."""
    kind: type

    @property
    def keys(self) -> list[Key]:
        """The keys, without the groups of a root."""
        groups = {key.name for key in keys(Config) if key.name != "seed"}
        if self.prefix:
            return keys(self.kind)
        return [key for key in keys(self.kind) if key.name not in groups]


def sections(root: type) -> list[Section]:
    """The sections of a run, or the one of another root: only what a run does not have."""
    found = [Section(root, "", "", root)]
    if root is not Config:
        return found
    classes = section_classes()
    for key in keys(Config):
        if key.section:
            found.append(Section(root, f"{key.name}.", "", key.section))
        if key.name != "data":
            found += _of_choices(root, key.name, classes.get(key.name, {}))
    return found + _of_choices(root, "data", classes["data"])


def _of_choices(root: type, group: str, classes: dict[str, type]) -> list[Section]:
    common = next(key.section for key in keys(root) if key.name == group)
    own = {name: kind for name, kind in sorted(classes.items()) if kind is not common}
    return [Section(root, f"{group}.", f"{group}={name}", kind) for name, kind in own.items()]


def flat_keys(section: Section) -> Iterator[tuple[str, Key]]:
    """(full name, key) for the keys of a section and of the sections in it."""
    yield from _flat(section.keys, section.prefix)


def _flat(listed: list[Key], prefix: str) -> Iterator[tuple[str, Key]]:
    for key in listed:
        if key.section and key.default is not None:
            yield from _flat(keys(key.section), f"{prefix}{key.name}.")
        else:
            yield f"{prefix}{key.name}", key
