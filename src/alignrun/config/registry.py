"""Discovery of registered classes: importing a package's modules lets each register its own."""

import importlib
import pkgutil


def import_modules(package: str) -> None:
    """Import every module of a package and its subpackages."""
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, f"{package}."):
        importlib.import_module(module.name)
