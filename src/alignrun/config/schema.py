"""The building blocks of every configuration section."""

from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar, dataclass_transform

from alignrun.errors import InputError

T = TypeVar("T")

AUTO = "auto"
"""The value of a key that the memory plan chooses when the run starts."""


@dataclass_transform(frozen_default=True)
def schema(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass that Hydra can still compose into.

    OmegaConf turns a frozen dataclass into a read-only node that rejects merges from YAML. This clears the flag that
    OmegaConf reads; the objects stay frozen, since `__setattr__` is already in place.
    """
    bases: list[Any] = [base for base in cls.__mro__[1:] if is_dataclass(base)]
    for base in bases:  # a frozen dataclass may only extend a frozen one
        base.__dataclass_params__.frozen = True
    frozen: Any = dataclass(frozen=True)(cls)
    for section in (frozen, *bases):
        section.__dataclass_params__.frozen = False
    return frozen  # type: ignore[no-any-return]


class FromData:
    """Marks the settings of an algorithm that learns from pairs or demonstrations, not from prompts alone."""


# OmegaConf 2.3 cannot merge fields of a union type, so these keys are of any type and are checked here.


def require_count(value: Any, key: str) -> None:
    """Refuse what is not a number of rows, null or auto. Raises InputError."""
    number = isinstance(value, int) and not isinstance(value, bool)
    require(number or value in (None, AUTO), key, f"must be a whole number, null or auto, not {value}")
    require(not number or value >= 1, key, "must be at least 1")


def require_switch(value: Any, key: str) -> None:
    """Refuse what is not true, false or auto. Raises InputError."""
    require(isinstance(value, bool) or value == AUTO, key, f"must be auto, true or false, not {value}")


def require(condition: bool, key: str, problem: str) -> None:
    """Refuse a configuration unless the condition holds: `key` names the setting, `problem` the reason and the fix."""
    if not condition:
        raise InputError(f"config: {key} {problem}")
