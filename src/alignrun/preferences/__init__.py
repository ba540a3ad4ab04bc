"""Preferences over pairs of completions. Importing the package registers every file of it that is one."""

import importlib
import pkgutil

from alignrun.preferences.base import PREFERENCES, Preference, Reward

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["PREFERENCES", "Preference", "Reward"]
