"""What every section of the configuration is built with."""

from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar, dataclass_transform

from alignrun.errors import InputError

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def schema(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass that Hydra can still compose into.

    OmegaConf turns a dataclass declared frozen into a read-only node, into which no YAML can be merged. The flag
    that it looks at is lowered here; the objects themselves stay frozen, since `__setattr__` is already in place.
    """
    bases: list[Any] = [base for base in cls.__mro__[1:] if is_dataclass(base)]
    for base in bases:  # a section may extend another, and Python wants both to be frozen
        base.__dataclass_params__.frozen = True
    frozen: Any = dataclass(frozen=True)(cls)
    for section in (frozen, *bases):
        section.__dataclass_params__.frozen = False
    return frozen  # type: ignore[no-any-return]


def require(condition: bool, key: str, problem: str) -> None:
    """Refuse a configuration: `key` is what the user must change, `problem` says why and to what."""
    if not condition:
        raise InputError(f"config: {key} {problem}")
