"""The user's function: imported by its path, and called with the arguments it names; does not import torch."""

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from alignrun.errors import InputError, one_line
from alignrun.preferences.arguments import Arguments
from alignrun.preferences.worker import Texts
from alignrun.security.working_directory import importable


def call(function: Callable[..., Any], arguments: Arguments, texts: Texts) -> Any:
    """The function's result, awaited if it is async."""
    returned = arguments.call(function, texts)
    return asyncio.run(_result(returned)) if inspect.isawaitable(returned) else returned


async def _result(returned: Awaitable[Any]) -> Any:
    return await returned


def by_path(path: str, names: Sequence[str]) -> Callable[[Texts], list[float]]:
    """The function of a path, called with texts of these names, for a process without torch.

    It raises ValueError for values that are not scores.
    """
    function = import_function(path)
    arguments = Arguments(function, names)

    def compute(texts: Texts) -> list[float]:
        returned = call(function, arguments, texts)
        values = [float(value) for value in (returned.tolist() if hasattr(returned, "tolist") else returned)]
        if len(values) != len(texts[0]) or not all(map(math.isfinite, values)):
            raise ValueError("these are not scores")
        return values

    return compute


def raised_at(error: BaseException, path: str) -> str:
    """The innermost line of the user's module that an error passed, ` (rewards.py:12)`; empty if it passed none."""
    file = getattr(sys.modules.get(path.partition(":")[0]), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(str(file)).name}:{lines[-1]})" if lines else ""


def import_function(path: str) -> Callable[..., Any]:
    """Import `package.module:name` from the environment, or else from the current folder.

    The folder is importable only until the module is imported, so libraries never import from it later.

    Raises:
        InputError: it does not exist or is not callable.
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
            f"preference.function={path} cannot be imported ({problem}): fix the module or the name"
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
