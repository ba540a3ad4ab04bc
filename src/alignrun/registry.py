"""How files of a package are found: importing them lets each register what it holds, without further wiring."""

import importlib
import pkgutil


def import_modules(package: str) -> None:
    """Import every module of a package."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
