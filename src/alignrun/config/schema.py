"""What every section of the configuration is built with."""

from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform

from alignrun.errors import InputError

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def schema(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass that Hydra can still compose into.

    OmegaConf turns a dataclass declared frozen into a read-only node, into which no YAML can be merged. The flag
    that it looks at is lowered here; the objects themselves stay frozen, since `__setattr__` is already in place.
    """
    frozen: Any = dataclass(frozen=True)(cls)
    frozen.__dataclass_params__.frozen = False
    return frozen  # type: ignore[no-any-return]


def require(condition: bool, key: str, problem: str) -> None:
    """Refuse a configuration: `key` is what the user must change, `problem` says why and to what."""
    if not condition:
        raise InputError(f"config: {key} {problem}")
