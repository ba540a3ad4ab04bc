"""A preference or a reward from the user's own Python function, named by its import path."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.config import require, schema
from alignrun.errors import InputError, RunError, one_line
from alignrun.preferences.base import Preference, Reward, preference
from alignrun.security.text import counted
from alignrun.security.working_directory import importable


class FunctionKind(str, Enum):
    """What the function returns."""

    preference = "preference"
    """`f(prompts, first, second)`: a list of P(first ≻ second)."""
    reward = "reward"
    """`f(prompts, completions)`: a list of scalars."""


@schema
class FunctionConfig:
    """Where the function is and what it returns."""

    name: str = "function"
    function: str | None = None
    """`package.module:name`, in the environment or, where it is not there, in the current folder."""
    kind: FunctionKind = FunctionKind.preference
    temperature: float = 1.0
    """For a reward: P = σ((r − r') / temperature)."""

    def __post_init__(self) -> None:
        require(bool(self.function), "preference.function", "is missing: name it as package.module:function")
        require(self.temperature > 0, "preference.temperature", f"must be positive, not {self.temperature}")


class FunctionPreference(Preference):
    """Asks for both orders and averages: ½ (f(y, y') + 1 − f(y', y)), antisymmetric whatever the function does."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] the average of both orders."""
        forward = self._ask(prompts, first, second)
        return (forward + 1 - self._ask(prompts, second, first)) / 2

    def _ask(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        values = _call(self._name, self._function, list(prompts), list(first), list(second))
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise RunError(
                f"preference.function={self._name} returned a value outside [0, 1]: it must be a probability"
            )
        return values


class FunctionReward(Reward):
    """The user's reward as a preference."""

    def __init__(self, name: str, function: Callable[..., Any], temperature: float) -> None:
        super().__init__(temperature)
        self._name, self._function = name, function

    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] what the function returns."""
        return _call(self._name, self._function, list(prompts), list(completions))


@preference("function", FunctionConfig)
def build(config: FunctionConfig) -> Preference:
    """The preference that the configuration asks for."""
    name = str(config.function)
    function = import_function(name)
    if config.kind is FunctionKind.reward:
        return FunctionReward(name, function, config.temperature)
    return FunctionPreference(name, function)


def import_function(path: str) -> Callable[..., Any]:
    """Import `package.module:name` from the environment, or from the current folder where it is not there.

    The folder is importable until the module is imported and no longer: what a library looks for later is not there.

    Raises:
        InputError: it is not there or not callable.
    """
    module_name, separator, name = path.partition(":")
    if not separator or not module_name or not name:
        raise InputError(f"preference.function={path} is not an import path: write package.module:function")
    try:
        with nullcontext() if _is_installed(module_name.partition(".")[0]) else importable():
            module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        problem = f"{type(error).__name__}: {one_line(error, 120)}"
        raise InputError(
            f"preference.function={path} cannot be imported ({problem}): mend the module or the name"
        ) from error
    function = getattr(module, name, None)
    if function is None:
        where = getattr(module, "__file__", None) or "built into Python"
        raise InputError(
            f"preference.function={path}: module {module_name} has no {name}: correct the name, or rename your module "
            f"if you meant another one than {where}"
        )
    if not callable(function):
        raise InputError(f"preference.function={path} is not callable")
    return function  # type: ignore[no-any-return]


def _is_installed(package: str) -> bool:
    """Whether a top-level name can be imported without the current folder."""
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _call(name: str, function: Callable[..., Any], *arguments: list[str]) -> Tensor:
    """[B] what the function returns for the rows of its arguments, each process asking it about its share."""
    return distributed.by_share(
        len(arguments[0]), lambda rows: _ask(name, function, *([side[row] for row in rows] for side in arguments))
    )


def _ask(name: str, function: Callable[..., Any], *arguments: list[str]) -> Tensor:
    try:
        values = torch.as_tensor(function(*arguments), dtype=torch.float32).flatten().cpu()
    except ModuleNotFoundError as error:
        raise RunError(
            f"preference.function={name} failed: {one_line(error)}: install it, or import it at the top of the "
            "function's module, since the current folder is importable only until that is imported"
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise RunError(f"preference.function={name} failed: {type(error).__name__}: {one_line(error)}") from error
    if len(values) != len(arguments[0]):
        raise RunError(
            f"preference.function={name} returned {counted(len(values), 'value')} for "
            f"{counted(len(arguments[0]), 'prompt')}"
        )
    if not all(map(math.isfinite, values.tolist())):
        raise RunError(f"preference.function={name} returned a value that is not finite")
    return values
