"""How the files of a package are found: importing them lets each register what it holds, without further wiring."""

import importlib
import pkgutil


def import_modules(package: str) -> None:
    """Import every module of a package, also in the packages below it."""
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, f"{package}."):
        importlib.import_module(module.name)
