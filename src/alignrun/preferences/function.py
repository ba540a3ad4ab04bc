"""Your own Python function, sync or async, named by its import path: preference.function=package.module:name."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.config import require, schema
from alignrun.errors import AlignrunError, InputError, RunError, one_line
from alignrun.preferences.arguments import Arguments
from alignrun.preferences.base import Judgment, Preference, Reward, preference
from alignrun.preferences.texts import TextScores
from alignrun.preferences.user_code import call, import_function, raised_at
from alignrun.security.text import counted
from alignrun.types import Example, as_prompt


class FunctionKind(str, Enum):
    """What the function returns."""

    preference = "preference"
    """`f(prompts, first, second)`: a list of P(first ≻ second)."""
    reward = "reward"
    """`f(prompts, completions)`: a list of scalars."""


TEXTS = {
    FunctionKind.preference: ("prompts", "first", "second"),
    FunctionKind.reward: ("prompts", "completions"),
}
"""The arguments that every function gets."""


@schema
class FunctionConfig:
    """The function's import path and kind."""

    name: str = "function"
    function: str | None = None
    """`package.module:name`, in the environment or, where it is not there, in the current folder."""
    kind: FunctionKind = FunctionKind.preference
    temperature: float = 1.0
    """For a reward: P = σ((r − r') / temperature)."""
    pure: bool = False
    """Equal rows always get equal values: they are cached, and computed in several processes if worthwhile."""

    def __post_init__(self) -> None:
        require(bool(self.function), "preference.function", "is missing: name it as package.module:function")
        require(self.temperature > 0, "preference.temperature", f"must be positive, not {self.temperature}")


class UserFunction:
    """The user's function, sync or async, called with texts and the columns that its parameters name."""

    def __init__(self, name: str, function: Callable[..., Any], kind: FunctionKind, *, pure: bool = False) -> None:
        self._name, self._function = name, function
        self._arguments = Arguments(function, TEXTS[kind])
        self._scores = None
        if pure:
            task = ("alignrun.preferences.user_code:by_path", (name, TEXTS[kind]))
            self._scores = TextScores(lambda texts: self._ask(texts).tolist(), task)

    def check(self, examples: Iterable[Example]) -> None:
        """Raises InputError if a row lacks a column that the function requires."""
        self._check(((example.origin, example.columns or {}) for example in examples), InputError)

    def _check(self, rows: Iterable[tuple[str, Mapping[str, Any]]], error: type[AlignrunError]) -> None:
        for origin, columns in rows if self._arguments.needed else ():
            if missing := [name for name in self._arguments.needed if name not in columns]:
                raise error(
                    f"preference.function={self._name} takes '{missing[0]}', and {origin} has no such column: rename "
                    "the parameter or the column, or give the parameter a default"
                )

    def __call__(self, *texts: Sequence[str]) -> Tensor:
        """[B] the function's values for prompts and completions, sharded over processes."""
        if self._scores is not None:
            return self._scores(*texts).float()
        return distributed.by_share(
            len(texts[0]), lambda rows: self._ask([[side[row] for row in rows] for side in texts])
        )

    def expect(self, *texts: Sequence[str]) -> None:
        """Start on the values of a pure function."""
        if self._scores is not None:
            self._scores.expect(*texts)

    def _ask(self, texts: Sequence[Sequence[str]]) -> Tensor:
        failed = f"preference.function={self._name} failed"
        self._check((("a row", as_prompt(prompt).columns) for prompt in texts[0]), RunError)
        try:
            returned = call(self._function, self._arguments, texts)
            values = torch.as_tensor(returned, dtype=torch.float32).detach().flatten().cpu()
        except ModuleNotFoundError as error:
            raise RunError(
                f"{failed}: {one_line(error)}: install it, or import it at the top of the function's module, since the "
                "current folder is importable only until that is imported"
            ) from error
        except Exception as error:  # the user's code may raise anything
            where = raised_at(error, self._name)
            raise RunError(f"{failed}: {type(error).__name__}: {one_line(error)}{where}") from error
        if len(values) != len(texts[0]):
            raise RunError(
                f"preference.function={self._name} returned {counted(len(values), 'value')} for "
                f"{counted(len(texts[0]), 'prompt')}"
            )
        if not all(map(math.isfinite, values.tolist())):
            raise RunError(f"preference.function={self._name} returned a value that is not finite")
        return values


class FunctionPreference(Preference):
    """Averages both orders: ½ (f(y, y') + 1 − f(y', y)), antisymmetric for any function."""

    def __init__(self, name: str, function: Callable[..., Any], *, pure: bool = False) -> None:
        self._name, self._function = name, UserFunction(name, function, FunctionKind.preference, pure=pure)

    def check(self, examples: Iterable[Example]) -> None:
        """Raises InputError if a row lacks a column that the function requires."""
        self._function.check(examples)

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] the average of both orders."""
        return self.judge(prompts, first, second).probabilities

    def judge(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Judgment:
        """Both orders separately, and their average."""
        forward, backward = self._ask(prompts, first, second), self._ask(prompts, second, first)
        return Judgment.in_both_orders((forward + 1 - backward) / 2, torch.stack([forward, backward], dim=1))

    def _ask(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        values = self._function(prompts, first, second)
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise RunError(
                f"preference.function={self._name} returned a value outside [0, 1]: it must be a probability"
            )
        return values


class FunctionReward(Reward):
    """The user's reward as a preference."""

    def __init__(self, name: str, function: Callable[..., Any], temperature: float, *, pure: bool = False) -> None:
        super().__init__(temperature)
        self._function = UserFunction(name, function, FunctionKind.reward, pure=pure)

    def check(self, examples: Iterable[Example]) -> None:
        """Raises InputError if a row lacks a column that the function requires."""
        self._function.check(examples)

    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] what the function returns."""
        return self._function(prompts, completions)

    def expect(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Start on the values of a pure function."""
        self._function.expect(prompts, completions)


def columns_of(config: FunctionConfig) -> Collection[str] | None:
    """The columns that the function names; None for all of them. Raises InputError as `import_function`."""
    return Arguments(import_function(str(config.function)), TEXTS[config.kind]).columns


@preference("function", FunctionConfig, columns=columns_of, by_pair=lambda c: c.kind is FunctionKind.preference)
def build(config: FunctionConfig) -> Preference:
    """The preference that the configuration asks for."""
    name = str(config.function)
    function = import_function(name)
    if config.kind is FunctionKind.reward:
        return FunctionReward(name, function, config.temperature, pure=config.pure)
    return FunctionPreference(name, function, pure=config.pure)
