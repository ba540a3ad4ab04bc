"""The interface of data sources: a function from the configuration to rows, registered by name, one file each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from alignrun.config import DataConfig, require
from alignrun.data.values import BadRowError, Row
from alignrun.discovery import import_all
from alignrun.errors import InputError
from alignrun.types import Example

Rows = Iterable[tuple[str, Row | BadRowError | Example]]
"""Each with its origin, such as `name.jsonl:12`; an unusable row is replaced by its error."""


@dataclass(frozen=True, slots=True)
class Split:
    """The training and held-out rows of a data set, read lazily."""

    train: Rows
    heldout: Rows | None = None
    """None if the source has no separate ones: a share of the rows is held out."""


Read = TypeVar("Read", bound=Callable[[Any], Split])


@dataclass(frozen=True, slots=True)
class Source:
    """A registered source of rows."""

    read: Callable[[Any], Split]
    config_class: type[DataConfig]
    """The dataclass that types its YAML."""
    reads: frozenset[str]
    """The keys of DataConfig with the location of the rows that this source uses."""
    needs: str
    """The one of them that is required; empty if none is."""
    shared: bool
    """Whether all rows are both trained on and evaluated on."""


_registered: dict[str, Source] = {}


def source(
    name: str,
    config_class: type[DataConfig] = DataConfig,
    *,
    reads: Iterable[str] = (),
    needs: str = "",
    shared: bool = False,
) -> Callable[[Read], Read]:
    """Register a function that reads rows, under the name that `data.source` gives.

    Args:
        name: the source's name.
        config_class: a dataclass that extends DataConfig, for a source with keys of its own.
        reads: the location keys of DataConfig that this source uses.
        needs: the one of them that is required.
        shared: whether all rows are both trained on and evaluated on.
    """

    def register(read: Read) -> Read:
        _registered[name] = Source(read, config_class, frozenset(reads), needs, shared)
        return read

    return register


def discover() -> dict[str, Source]:
    """Import every module of this package, so that a new file is a source without further wiring."""
    import_all("alignrun.data.sources")
    return _registered


def chosen_source(config: DataConfig) -> Source:
    """The configured source. Raises InputError for an unknown source, and for keys that it refuses or lacks."""
    known = discover()
    if config.source not in known:
        raise InputError(f"config: data.source={config.source} is unknown: choose from {', '.join(sorted(known))}")
    own = known[config.source]
    if not isinstance(config, own.config_class):
        raise InputError("config: data.source cannot be changed by itself: write data=NAME")
    defaults = DataConfig(name=config.name)
    for name in sorted({name for one in known.values() for name in one.reads} - own.reads):
        owners = " or ".join(f"data={owner}" for owner, one in known.items() if name in one.reads)
        given = getattr(config, name) != getattr(defaults, name)
        require(not given, f"data.{name}", f"is not valid with data={config.name}: choose {owners}")
    if own.needs:
        given = bool(getattr(config, own.needs))
        require(given, f"data.{own.needs}", f"is missing: data={config.name} needs it, as in data.{own.needs}=...")
    return own
